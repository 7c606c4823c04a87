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


def test_changes_come_with_named_vectors_and_a_token_goes_on_with_others() -> None:
    with needle.open_sync(":memory:") as client:
        title = needle.VectorSpec(dimensions=2, metric="l2")
        client.create_collection("a", dimensions=3, vectors={"title": title})
        with client.changes("a", vectors=["title"]) as feed:
            client.insert("x", [1, 2, 3], {"n": 1}, vectors={"title": [4, 5]}, collection="a")
            client.insert("y", [1, 2, 3], collection="a")
            client.update_vector("y", [6, 7], name="title", collection="a")
            client.patch("x", set={"n": 2}, collection="a")
            client.insert("x", [3, 2, 1], collection="a")
            client.delete("y", collection="a")
            told = [feed.next(30) for _ in range(6)]
            assert [(one.kind, one.id, _title(one)) for one in told if one is not None] == [
                ("insert", "x", [4, 5]), ("insert", "y", []), ("update", "y", [6, 7]), ("update", "x", [4, 5]),
                ("update", "x", []), ("delete", "y", None),
            ]  # fmt: skip
            token = feed.token
        client.add_vector("a", "image", needle.VectorSpec(dimensions=1, metric="l2", dtype="int8"))
        client.update_vector("x", [7], name="image", collection="a")
        with client.changes("a", since=token, vectors=["image", "title", "image"], with_vectors=False) as feed:
            one = feed.next(30)
            assert one is not None and one.vectors is not None and one.vector is None
            assert {name: row.tolist() for name, row in one.vectors.items()} == {"image": [7]}
            client.drop_vector("a", "image")
            with pytest.raises(needle.CollectionNotFound, match=r"'image' of collection 'a' was dropped"):
                for _ in range(20):
                    feed.next(1)
            token = feed.token
        client.insert("z", [1, 2, 3], vectors={"title": [8, 9]}, collection="a")
        with client.changes("a", since=token) as feed:
            one = feed.next(30)
            assert one is not None and (one.id, one.vectors) == ("z", None)
        with client.changes("a", since="start", vectors=["title"]) as feed:
            found = [feed.next(30) for _ in range(4)]
            assert [(one.kind, one.id, _title(one)) for one in found if one is not None] == [
                ("reset", "", None), ("insert", "x", []), ("insert", "z", [8, 9]), ("ready", "", None),
            ]  # fmt: skip
        with pytest.raises(needle.InvalidArgument, match="image"):
            client.changes("a", vectors=["image"]).begin()
        with pytest.raises(needle.InvalidArgument, match="vectors"):
            client.changes("a", vectors="image")


def _title(change: needle.client.Change) -> list[float] | None:
    return None if change.vectors is None else [float(one) for one in change.vectors.get("title", [])]


def test_a_watcher_by_name_hears_of_documents_that_have_the_vector() -> None:
    with needle.open_sync(":memory:") as client:
        title = needle.VectorSpec(dimensions=2, metric="l2")
        client.create_collection("a", dimensions=3, vectors={"title": title})
        with client.watch("a", [6, 8], vector_name="title", max_distance=1) as feed:
            client.insert("x", [1, 2, 3], vectors={"title": [6, 8]}, collection="a")
            client.insert("y", [1, 2, 3], collection="a")
            client.update_vector("y", [6, 9], name="title", collection="a")
            client.insert("x", [1, 2, 3], collection="a")
            told = [feed.next(30) for _ in range(3)]
            assert [(one.kind, one.id, one.distance) for one in told if one is not None] == [
                ("insert", "x", 0), ("insert", "y", 1), ("delete", "x", None),
            ]  # fmt: skip
            assert told[1] is not None and told[1].vector.tolist() == [6, 9]
        wrong = client.watch("a", [6, 8, 1], vector_name="title", max_distance=1)
        with wrong as feed, pytest.raises(needle.InvalidArgument, match="3"):
            feed.next(30)
        with pytest.raises(needle.InvalidArgument, match="other"):
            client.watch("a", [6, 8], vector_name="other", max_distance=1).begin()
        with pytest.raises(needle.InvalidArgument, match="give the vector itself"):
            client.watch("a", text="words", vector_name="title", max_distance=1)


def test_a_name_that_is_dropped_while_all_documents_are_told_ends_the_feed_as_at_any_time() -> None:
    count = 1100
    spec = needle.VectorSpec(dimensions=2, metric="l2")
    with needle.open_sync(":memory:") as client:
        client.create_collection("a", dimensions=1, vectors={"plot": spec, "title": spec})
        names, rows = [f"d{n:04}" for n in range(count)], np.ones((count, 1))
        client.insert_batch(ids=names, vectors=rows, named_vectors={"title": np.ones((count, 2))}, collection="a")
        with client.changes("a", since="start", vectors=["plot", "title"]) as feed:
            assert [next(feed).kind for _ in range(2)] == ["reset", "insert"]
            client.drop_vector("a", "title")
            with pytest.raises(
                needle.CollectionNotFound, match="vector 'title' of collection 'a' was dropped"
            ) as error:
                for _ in range(count):
                    next(feed)
        assert error.value.details["vector"] == "title"
