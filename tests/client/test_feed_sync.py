"""Change feeds without asyncio, on a database in this process."""

from __future__ import annotations

import numpy as np
import pytest

import needle


def test_changes_come_one_after_the_other_and_waiting_has_an_end() -> None:
    with needle.open_sync(":memory:") as client:
        client.create_collection("a", dimensions=2)
        with client.changes("a") as feed:
            assert feed.next(0.05) is None
            client.insert("x", [3, 4], {"n": 1}, collection="a")
            client.delete("x", collection="a")
            first = next(feed)
            token = feed.token
            assert (first.kind, first.id, first.metadata) == ("insert", "x", {"n": 1})
            second = feed.next(30)
            assert second is not None
            assert (second.kind, second.id, second.vector, second.metadata) == ("delete", "x", None, None)
            assert second.version > first.version
        with client.changes("a", since=token, with_vectors=False) as feed:
            assert next(feed) == second
        with client.changes("a", since="start") as feed:
            assert [next(feed).kind, next(feed).kind] == ["reset", "ready"]


@pytest.mark.parametrize(
    ("metric", "dtype", "bounds"),
    [
        ("l2", "float32", {"max_distance": 1.0}),
        ("cosine", "int8", {"min_score": 0.99}),
        ("dot", "float16", {"min_score": 50.0}),
    ],
)
def test_a_watcher_hears_what_comes_near_and_what_leaves(metric: str, dtype: str, bounds: dict[str, float]) -> None:
    """near, far: by each of the metrics."""
    near, nearer, far = [6, 8], [6, 9], [-6, 1]
    with needle.open_sync(":memory:") as client:
        client.create_collection("a", dimensions=2, metric=metric, dtype=dtype)
        client.insert_batch([("before", near), ("far", far)], collection="a")
        with client.watch("a", [6.0, 8.5], filter={"no": {"$exists": False}}, **bounds) as feed:
            client.insert("x", near, {"n": 1}, collection="a")
            client.insert("y", far, collection="a")
            client.insert("y", near, collection="a")
            client.patch("x", set={"n": 2}, collection="a")
            client.update_vector("x", nearer, collection="a")
            client.update_vector("before", far, collection="a")
            client.delete(["far", "y"], collection="a")
            client.patch("x", set={"no": 1}, collection="a")
            told = [feed.next(30) for _ in range(7)]
            assert [(one.kind, one.id) for one in told if one is not None] == [
                ("insert", "x"), ("insert", "y"), ("update", "x"), ("update", "x"), ("delete", "before"),
                ("delete", "y"), ("delete", "x"),
            ]  # fmt: skip
            hit = client.search([6.0, 8.5], k=1, collection="a")[0]
            assert told[3] is not None
            assert np.array_equal(told[3].vector, nearer)
            assert (hit.id, hit.distance) == ("x", told[3].distance)
            assert told[6] is not None
            assert told[6].distance is None
            token = feed.token
        client.insert("z", nearer, collection="a")
        with client.watch("a", [6.0, 8.5], since=token, with_vectors=False, **bounds) as feed:
            again = feed.next(30)
            assert again is not None
            assert (again.kind, again.id, again.vector, again.distance) == ("insert", "z", None, hit.distance)
        with pytest.raises(needle.InvalidArgument, match="max_distance"):
            client.watch("a", [1, 2])
        with pytest.raises(needle.InvalidArgument, match="since"):
            client.watch("a", [1, 2], since="start", **bounds)
        with client.watch("a", [1, 2, 3], **bounds) as feed, pytest.raises(needle.InvalidArgument, match="3"):
            next(feed)
