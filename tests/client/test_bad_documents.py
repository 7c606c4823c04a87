"""Bad input of the everyday operations: each is refused by name, says which argument it was, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

import needle
from needle import CollectionExists, CollectionNotFound, Filter, InvalidArgument, NeedleError, SyncClient
from needle.client.cursor import Place, encode

PAST = "2001-01-01T00:00:00Z"
LONG = "y" * 70_000
WHERE: Any = {"n": 1}
IDS: Any = ["a"]


class Opened:
    """A database in this process: two collections, one with an alias, and cursors of two scans that are half read."""

    def __init__(self, client: SyncClient) -> None:
        self.client = client
        client.insert_batch(ids=["a", "b"], vectors=[[1, 0], [0, 1]], metadatas=[{"n": 1, "tags": ["x"]}, {"n": 2}])
        client.create_collection("other", dimensions=2)
        client.set_alias("alias", "default")
        self.plain, self.pinned = (
            client.scan_page(limit=1, consistent=consistent).cursor or "" for consistent in (False, True)
        )
        self.before = self.content()

    def content(self) -> Any:
        client = self.client
        found = [(one.id, one.version, one.metadata, one.expires_at) for one in client.scan()]
        described = [(one.name, one.documents, one.ttl, one.aliases) for one in client.describe_collections()]
        return found, described, client.aliases()


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    with needle.open_sync(":memory:", dimensions=2) as client:
        yield Opened(client)


def made_up(shard: int) -> str:
    """A cursor whose text is whole, with a pin that no shard has."""
    return encode(Place("default", b"", (0, 1), "a", 0, 12345, ((shard, 3),)))


BAD: list[tuple[Callable[[Opened, Any], Any], type[NeedleError], str]] = [
    # Aliases.
    (lambda o, c: c.count(collection="none"), CollectionNotFound, ""),
    (lambda o, c: c.insert("q", [1, 0], collection="none"), CollectionNotFound, ""),
    (lambda o, c: c.alter_collection("none", ttl=1), CollectionNotFound, ""),
    (lambda o, c: c.describe_collection("none"), CollectionNotFound, ""),
    (lambda o, c: c.remove_alias("none"), CollectionNotFound, ""),
    (lambda o, c: c.set_alias("x", "none"), CollectionNotFound, ""),
    (lambda o, c: c.set_alias("x", "alias"), InvalidArgument, "collection"),
    (lambda o, c: c.set_alias("x", "x"), InvalidArgument, "alias"),
    (lambda o, c: c.set_alias("alias", "alias"), InvalidArgument, "alias"),
    (lambda o, c: c.set_alias("other", "default"), CollectionExists, ""),
    (lambda o, c: c.create_collection("alias", dimensions=2), CollectionExists, ""),
    (lambda o, c: c.drop_collection("alias"), InvalidArgument, "name"),
    (lambda o, c: c.drop_collection("default"), InvalidArgument, "collection"),
    # Cursors.
    (lambda o, c: c.scan_page(cursor=o.plain, collection="other"), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.plain[:-2]), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.plain[2:]), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(WHERE, cursor=o.plain), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.plain, slice=(0, 2)), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=""), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=7), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.pinned, collection="other"), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.pinned[:-2]), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(WHERE, cursor=o.pinned), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=o.plain, consistent=True), InvalidArgument, "consistent"),
    (lambda o, c: c.scan_page(consistent="yes"), InvalidArgument, "consistent"),
    (lambda o, c: list(c.scan(cursor=o.plain, consistent=True)), InvalidArgument, "consistent"),
    (lambda o, c: c.scan_page(cursor=made_up(0)), needle.ScanEnded, ""),
    (lambda o, c: c.scan_page(cursor=made_up(-1)), InvalidArgument, "cursor"),
    (lambda o, c: c.scan_page(cursor=made_up(77)), InvalidArgument, "cursor"),
    # Slices and limits.
    (lambda o, c: c.scan_page(slice=(3, 3)), InvalidArgument, "slice"),
    (lambda o, c: c.scan_page(slice=(-1, 3)), InvalidArgument, "slice[0]"),
    (lambda o, c: c.scan_page(slice=(0, 0)), InvalidArgument, "slice[1]"),
    (lambda o, c: c.scan_page(slice=(0, 1025)), InvalidArgument, "slice"),
    (lambda o, c: c.scan_page(slice=(0, 1025), consistent=True), InvalidArgument, "slice"),
    (lambda o, c: c.scan_page(slice=(1,)), InvalidArgument, "slice"),
    (lambda o, c: c.scan_page(limit=0), InvalidArgument, "limit"),
    (lambda o, c: c.scan_page(fields="n"), InvalidArgument, "fields"),
    # Patches over the limit.
    (lambda o, c: c.patch("a", set={"x": LONG}), InvalidArgument, "change"),
    (lambda o, c: c.patch_where({}, set={"x": LONG}), InvalidArgument, "change"),
    (lambda o, c: c.patch("a", append={"tags": [LONG[:65_520]]}), InvalidArgument, ""),
    (lambda o, c: c.patch_where(WHERE, append={"tags": [LONG[:65_520]]}), InvalidArgument, ""),
    (lambda o, c: c.patch([f"x{n}" for n in range(1001)], set={"x": 1}), InvalidArgument, "ids"),
    (lambda o, c: c.patch("a"), InvalidArgument, ""),
    (lambda o, c: c.patch("a", set={"x": 1}, unset=["x"]), InvalidArgument, "change"),
    # Times to live and instants.
    (lambda o, c: c.alter_collection("default", ttl=-1), InvalidArgument, "ttl"),
    (lambda o, c: c.alter_collection("default", ttl=float("nan")), InvalidArgument, "ttl"),
    (lambda o, c: c.alter_collection("default", ttl=1e18), InvalidArgument, "ttl"),
    (lambda o, c: c.create_collection("z", dimensions=2, ttl=-5), InvalidArgument, "ttl"),
    (lambda o, c: c.insert("q", [1, 0], expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.insert_batch(ids=["q"], vectors=[[1, 0]], expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.patch("a", expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.patch_where({}, expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.update_vector("a", [1, 0], expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.replace_metadata("a", {}, expires_at=PAST), InvalidArgument, "expires_at"),
    (lambda o, c: c.insert("q", [1, 0], expires_at=datetime(2100, 1, 1)), InvalidArgument, "expires_at"),
    (lambda o, c: c.insert("q", [1, 0], expires_at="soon"), InvalidArgument, "expires_at"),
    # A filter where ids are meant, and the other way round.
    (lambda o, c: c.delete(WHERE), InvalidArgument, "ids"),
    (lambda o, c: c.delete(Filter.eq("n", 1)), InvalidArgument, "ids"),
    (lambda o, c: c.patch(WHERE, set={"x": 1}), InvalidArgument, "ids"),
    (lambda o, c: c.replace_metadata(WHERE, {}), InvalidArgument, "ids"),
    (lambda o, c: c.update_vector(WHERE, [1, 0]), InvalidArgument, "id"),
    (lambda o, c: c.update_vectors(WHERE, [[1, 0]]), InvalidArgument, "ids"),
    (lambda o, c: c.get(WHERE), InvalidArgument, "ids"),
    (lambda o, c: c.search(like=WHERE), InvalidArgument, "like"),
    (lambda o, c: c.delete_where(IDS), InvalidArgument, "filter"),
    (lambda o, c: c.delete_where("a"), InvalidArgument, "filter"),
    (lambda o, c: c.delete_where(None), InvalidArgument, "filter"),
    (lambda o, c: c.patch_where(IDS, set={"x": 1}), InvalidArgument, "filter"),
    (lambda o, c: c.count(IDS), InvalidArgument, "filter"),
    (lambda o, c: c.scan_page(IDS), InvalidArgument, "filter"),
    (lambda o, c: c.search([1, 0], filter=IDS), InvalidArgument, "filter"),
    (lambda o, c: c.delete("a", if_matches=IDS), InvalidArgument, "if_matches"),
    (lambda o, c: c.patch("a", set={"x": 1}, if_matches=IDS), InvalidArgument, "if_matches"),
    (lambda o, c: c.insert("a", [1, 0], if_matches="a"), InvalidArgument, "if_matches"),
    (lambda o, c: c.update_vector("a", [1, 0], if_matches=IDS), InvalidArgument, "if_matches"),
]


@pytest.mark.parametrize("row", range(len(BAD)))
def test_it_is_refused_by_name_and_nothing_is_changed(row: int, opened: Opened) -> None:
    call, refused, field = BAD[row]
    with pytest.raises(NeedleError) as told:
        call(opened, opened.client)
    assert type(told.value) is refused, told.value
    if field:
        assert told.value.details.get("field") == field, told.value
    assert opened.content() == opened.before
