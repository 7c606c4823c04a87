"""When documents expire: what the log makes of instants, on one replica, on several, and across moves and snapshots."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import AlreadyExists, CollectionNotFound, CorruptDocuments, InvalidArgument
from needle.base.instants import micros, rfc3339
from needle.base.model import SearchRequest, WriteResult
from needle.protocol.commands import (
    NEVER,
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    Expire,
    Insert,
    Patch,
    UpdateVectors,
    decode,
    encode,
    without_repeats,
)
from needle.protocol.move_commands import Forget, Freeze, Import, Own, PrepareMove, Release
from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import RANGE, ShardStrategy, routing_key
from needle.shard import copying
from needle.shard.documents.row_check import verify_image_file
from needle.shard.documents.sqlite_file import FILE_NAME, connect
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

IDS = [f"{letter}{n}" for letter in "amz" for n in range(12)]


def due(before: int, limit: int = 1000) -> Expire:
    return Expire("c", before, limit)


class Shard:
    """A replica with its log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.replica = open_replica(directory)
        self.log = Log()
        self.done(CreateCollection(spec()))

    def told(self, *commands: Command) -> Any:
        """The last one's result."""
        return self.replica.apply(self.log.add(*commands))[-1]

    def done(self, *commands: Command) -> WriteResult:
        result = self.told(*commands)
        assert isinstance(result, WriteResult), result
        return result

    def there(self) -> dict[str, int]:
        """Visible documents and when they expire, as all reads find them alike."""
        found = {one.id: one.expires for one in self.replica.get("c", IDS, True)}
        hits = self.replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1000))
        filtered = SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1000, filter=b'{"t": {"$exists": false}}')
        assert set(hits.ids) == set(self.replica.search(filtered).ids) == set(found)
        assert (
            self.replica.count("c") == len(found) == self.replica.count_matching("c", b'{"t": {"$exists": false}}')[0]
        )
        self.replica.verify()
        return found


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard(tmp_path / "one")


def three(*names: str, expires: Sequence[int] = ()) -> Insert:
    return put(list(names), [[n, 0, 0] for n in range(len(names))], expires=list(expires))


# --- one replica ---
def test_what_has_passed_its_instant_is_deleted_and_nothing_else(shard: Shard) -> None:
    shard.done(three("a0", "a1", "a2", expires=[100, 0, 200]))
    assert shard.there() == {"a0": 100, "a1": 0, "a2": 200}
    assert shard.done(due(99)).count == 0
    assert shard.done(due(100)) == WriteResult(version=4, index=4, existed=True, count=1)
    assert shard.there() == {"a1": 0, "a2": 200}
    # A clock that goes back brings nothing back, and finds nothing that was not due.
    assert shard.done(due(50)).count == 0
    assert shard.there() == {"a1": 0, "a2": 200}
    assert shard.done(due(10**15)).count == 1
    assert shard.there() == {"a1": 0}


def test_after_it_the_document_is_as_deleted(shard: Shard) -> None:
    shard.done(three("a0", expires=[100]))
    assert isinstance(shard.told(put(["a0"], [[1, 1, 1]], expected=0)), AlreadyExists)
    shard.done(due(100))
    assert shard.done(Patch("c", ["a0"], Change(set=[("x", b"1")]))).count == 0
    assert shard.done(Delete("c", ["a0"])).count == 0
    shard.done(put(["a0"], [[1, 1, 1]], expected=0))
    assert shard.there() == {"a0": 0}
    shard.replica.checkpoint()
    assert not shard.replica._store.writer.doomed(0, 1).rows  # its rows were purged with the others


def test_one_entry_deletes_so_many_and_the_earliest_first(shard: Shard) -> None:
    shard.done(three("a0", "a1", "a2", "m0", expires=[300, 100, 100, 200]))
    assert shard.done(due(1000, 2)).count == 2
    assert shard.there() == {"a0": 300, "m0": 200}
    assert shard.done(due(1000, 1)).count == 1
    assert shard.there() == {"a0": 300}


@pytest.mark.parametrize(
    ("write", "then"),
    [
        (three("a0", expires=[500]), 500),
        (three("a0"), 0),
        (Patch("c", ["a0"], Change(set=[("x", b"1")])), 100),
        (Patch("c", ["a0"], Change(expires=500)), 500),
        (Patch("c", ["a0"], Change(set=[("x", b"1")], expires=NEVER)), 0),
        (UpdateVectors("c", ["a0"], floats([1, 2, 3])), 100),
        (UpdateVectors("c", ["a0"], floats([1, 2, 3]), expires=500), 500),
        (UpdateVectors("c", ["a0"], floats([1, 2, 3]), expires=NEVER), 0),
        (ChangeWhere("c", b"{}", Change(expires=500)), 500),
        (ChangeWhere("c", b"{}", Change(set=[("x", b"1")])), 100),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_was_given_a_later_instant_stays(shard: Shard, write: Command, then: int) -> None:
    shard.done(three("a0", expires=[100]), write)
    assert shard.replica.get("c", ["a0"], False)[0].expires == then
    assert shard.done(due(100)).count == (then == 100)
    assert len(shard.replica.get("c", ["a0"], False)) == (then != 100)
    assert shard.done(due(500)).count == (then == 500)
    shard.replica.verify()


def test_a_refused_write_leaves_the_instant(shard: Shard) -> None:
    shard.done(three("a0", expires=[100]))
    refused = shard.told(put(["a0", "a1"], [[1, 1, 1], [2, 2, 2]], expires=[5]))
    assert isinstance(refused, InvalidArgument) and refused.details["field"] == "expires_at"
    assert isinstance(shard.told(put(["a0"], [[1, 1, 1]], expected=0, expires=[900])), AlreadyExists)
    assert shard.there() == {"a0": 100}


def test_a_dropped_collection_expires_no_more(shard: Shard) -> None:
    shard.done(three("a0", expires=[100]), DropCollection("c"))
    assert not shard.replica.may_expire(10**12)
    assert shard.replica.expired(10**12) == ""
    assert isinstance(shard.told(due(100)), CollectionNotFound)
    shard.done(CreateCollection(spec()), three("a0"))
    assert shard.done(due(10**12)).count == 0


def test_of_documents_with_one_id_the_last_instant_counts() -> None:
    kept = without_repeats(three("a0", "a1", "a0", expires=[1, 2, 3]))
    assert (kept.ids, kept.expires) == (["a1", "a0"], [2, 3])


# --- what the leader looks at ---
def test_nothing_is_looked_at_while_nothing_can_expire(shard: Shard, tmp_path: Path) -> None:
    shard.done(three("a0", "a1"))
    assert not shard.replica.may_expire(10**16)
    shard.done(three("m0", "m1", expires=[300, 200]))
    assert not shard.replica.may_expire(199)
    assert shard.replica.may_expire(200)
    assert (shard.replica.expired(199), shard.replica.expired(200)) == ("", "c")
    shard.done(Patch("c", ["m1"], Change(expires=NEVER)))
    assert shard.replica.may_expire(200)  # it knows a bound, and corrects it once
    assert shard.replica.expired(200) == ""
    assert not shard.replica.may_expire(200)
    assert shard.replica.may_expire(300)
    shard.replica.close()
    again = open_replica(shard.directory)
    assert not again.may_expire(299)
    assert again.expired(300) == "c"


def test_what_expires_is_found_by_an_index(shard: Shard) -> None:
    shard.done(three(*IDS, expires=range(1, len(IDS) + 1)))
    with shard.replica._store.reading() as connection:
        for query in (
            "SELECT expires FROM ids INDEXED BY expiring WHERE collection_id = 1 AND expires > 0 ORDER BY expires "
            "LIMIT 1",
            "SELECT i.id FROM ids i INDEXED BY expiring "
            "JOIN documents d ON d.row = (i.collection_id << 40 | i.ordinal) "
            "WHERE i.collection_id = 1 AND i.expires > 0 AND i.expires <= 9 ORDER BY i.expires, i.id LIMIT 5",
        ):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), plan


# --- several replicas ---
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_replicas_agree_with_each_other_and_with_a_plain_model(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    log, model = Log(), dict[str, int]()
    log.add(CreateCollection(spec()))
    for _ in range(40):
        names = rng.sample(IDS, rng.randint(1, 4))
        instants = [rng.choice([0, rng.randint(1, 50)]) for _ in names]
        match rng.randrange(6):
            case 0 | 1:
                log.add(three(*names, expires=instants if any(instants) or rng.random() < 0.5 else []))
                model.update(zip(names, instants, strict=True))
            case 2:
                change = Change(set=[("x", b"1")], expires=rng.choice([0, NEVER, 60]))
                log.add(Patch("c", names, change))
                then = {0: None, NEVER: 0, 60: 60}[change.expires]
                model.update({name: model[name] if then is None else then for name in names if name in model})
            case 3:
                log.add(UpdateVectors("c", names, floats(*[[9, 9, 9]] * len(names)), expires=30))
                model.update({name: 30 for name in names if name in model})
            case 4:
                log.add(Delete("c", names))
                for name in names:
                    model.pop(name, None)
            case _:
                before, limit = rng.randint(1, 60), rng.choice([1, 3, 1000])
                log.add(due(before, limit))
                for _, name in sorted((at, name) for name, at in model.items() if 0 < at <= before)[:limit]:
                    del model[name]
    digests = set()
    for commit in (1, 1024):
        directory = tmp_path_factory.mktemp("replica")
        replica = open_replica(directory, commit=commit)
        at = 0
        while at < len(log.entries):  # however the entries are grouped, and a restart between them
            step = rng.randint(1, 12)
            replica.apply(log.entries[at : at + step])
            at += step
            if rng.random() < 0.2:
                replica.close()
                replica = open_replica(directory, commit=commit)
                at = replica.applied_index()
        assert {one.id: one.expires for one in replica.get("c", IDS, False)} == model
        replica.verify()
        digests.add(replica.digest())
        replica.close()
    assert len(digests) == 1


def test_the_instant_is_part_of_the_digest(tmp_path: Path) -> None:
    digests = []
    for n, instant in enumerate([0, 100, 101]):
        shard = Shard(tmp_path / str(n))
        shard.done(three("a0", expires=[instant]))
        digests.append(shard.replica.digest())
    assert len(set(digests)) == 3
    plain = Shard(tmp_path / "plain")
    plain.done(three("a0"))
    assert plain.replica.digest() == digests[0]  # as releases had it that know no instants


def test_entries_of_before_decode_as_they_were() -> None:
    for command, behind in (
        (three("a0"), 1),
        (Patch("c", ["a0"], Change(set=[("x", b"1")])), 0),
        (UpdateVectors("c", ["a0"], b"1234"), 1),
        (Import(1, 0, "c", 3, ["a0"], [1], b"1234", [b""], []), 1),
    ):
        body = msgspec.msgpack.decode(encode(command)[1:])
        for _ in range(behind):
            body.pop()
        if isinstance(command, Patch):
            body[3].pop()
        assert decode(b"\x01" + msgspec.msgpack.encode(body)) == command


# --- files ---
def test_a_snapshot_carries_the_instants(shard: Shard, tmp_path: Path) -> None:
    shard.done(three("a0", "a1", expires=[100, 200]))
    image, other = tmp_path / "image", open_replica(tmp_path / "other")
    image.mkdir()
    shard.replica.export_snapshot(str(image))
    other.check_snapshot(str(image))
    other.install_snapshot(str(image))
    assert other.may_expire(100) and not other.may_expire(99)
    entries = shard.log.add(due(100))
    for replica in (shard.replica, other):
        replica.apply(entries)
        assert [one.id for one in replica.get("c", ["a0", "a1"], False)] == ["a1"]
    assert other.digest() == shard.replica.digest()


def _as_format_4(path: str) -> None:
    with closing(connect(path)) as connection:
        connection.execute("DROP INDEX expiring")
        connection.execute("ALTER TABLE ids DROP COLUMN expires")
        connection.execute("UPDATE meta SET value = 4 WHERE name = 'format'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def test_a_file_of_the_release_before_is_brought_up_to_date(shard: Shard) -> None:
    shard.done(three("a0", "a1"), Patch("c", ["a0"], Change(set=[("x", b"1")])), Delete("c", ["a1"]))
    digest = shard.replica.digest()
    shard.replica.checkpoint()
    shard.replica.close()
    (path,) = shard.directory.rglob(FILE_NAME)
    _as_format_4(str(path))
    verify_image_file(str(path))  # an image of such a file is taken
    shard.replica = open_replica(shard.directory)
    assert shard.replica.damage is None
    assert shard.replica.digest() == digest
    shard.replica.verify()
    shard.done(three("m0", expires=[100]), due(100))
    assert shard.there() == {"a0": 0}


def test_an_index_that_lacks_an_instant_is_found(shard: Shard) -> None:
    shard.done(three("a0", "a1", expires=[100, 200]))
    shard.replica.checkpoint()
    shard.replica.close()
    (path,) = shard.directory.rglob(FILE_NAME)
    with closing(connect(str(path))) as connection:
        connection.execute("DROP INDEX expiring")
        connection.execute("CREATE INDEX expiring ON ids (collection_id, expires) WHERE expires > 0")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'expires > 0', 'expires > 150') WHERE name = 'expiring'"
        )
    with closing(connect(str(path))) as connection:
        connection.execute("REINDEX expiring")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'expires > 150', 'expires > 0') WHERE name = 'expiring'"
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with pytest.raises(CorruptDocuments, match="index of what expires"):
        verify_image_file(str(path))


# --- moves ---
MOVED: list[KeyRange] = [(b"m", None)]
KEYS = ShardStrategy.custom("k")


def prepare(incoming: bool, owned: list[KeyRange], strategy: ShardStrategy = RANGE) -> PrepareMove:
    return PrepareMove(9, 9, incoming, MOVED, owned, strategy, 2)


def copied(source: Replica, step: int, after: int = -1) -> Import:
    """What is above an ordinal, and what was deleted."""
    rows, reached, _ = copying.page(source.view, "c", MOVED, after, 1000)
    deleted, _ = copying.deleted(source.view, "c", MOVED, max(after, 0), None)
    return Import(
        9, step, "c", max(reached, after), [r.id for r in rows], [r.version for r in rows],
        b"".join(r.vector for r in rows), [r.metadata for r in rows], deleted, True, [r.expires for r in rows],
    )  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Shard, Shard]:
    source, target = Shard(tmp_path / "source"), Shard(tmp_path / "target")
    source.done(three("a0", "m0", "m1", "z0", expires=[100, 100, 200, 0]))
    source.done(prepare(False, [(b"", None)]))
    target.done(prepare(True, []))
    return source, target


def hand_over(source: Shard, target: Shard, step: int, after: int) -> None:
    floor = source.done(Freeze(9)).version
    last = copied(source.replica, step, after)
    target.done(last)
    source.done(Release(9))
    target.done(Own(9, step + 1, floor))
    while source.done(Forget(9, 2)).count:
        source.there()


def test_a_move_carries_the_instants(pair: tuple[Shard, Shard]) -> None:
    source, target = pair
    target.done(copied(source.replica, 0))
    hand_over(source, target, 1, 3)
    assert source.there() == {"a0": 100}
    assert target.there() == {"m0": 100, "m1": 200, "z0": 0}
    assert target.replica.expired(100) == "c"
    assert target.done(due(150)).count == 1
    assert target.there() == {"m1": 200, "z0": 0}


def test_what_expires_at_the_source_while_it_is_copied_expires_at_the_target(pair: tuple[Shard, Shard]) -> None:
    source, target = pair
    target.done(copied(source.replica, 0))
    assert source.done(due(150)).count == 2
    hand_over(source, target, 1, 3)
    assert source.there() == {}
    assert target.there() == {"m1": 200, "z0": 0}


def test_what_the_target_expires_before_it_owns_it_does_not_come_back_to_sight(pair: tuple[Shard, Shard]) -> None:
    source, target = pair
    target.done(copied(source.replica, 0))
    assert target.done(due(150)).count == 1  # a clock that is ahead: m0, of which this is a copy
    assert target.there() == {}
    source.done(Patch("c", ["m1"], Change(expires=300)))
    hand_over(source, target, 1, 3)
    assert target.there() == {"m1": 300, "z0": 0}


def test_who_is_given_a_later_instant_after_the_target_expired_it_comes_again(pair: tuple[Shard, Shard]) -> None:
    source, target = pair
    target.done(copied(source.replica, 0))
    target.done(due(150))
    source.done(Patch("c", ["m0"], Change(expires=900)))
    hand_over(source, target, 1, 3)
    assert target.there() == {"m0": 900, "m1": 200, "z0": 0}


def test_frozen_keys_do_not_expire_until_they_are_somebodys_again(pair: tuple[Shard, Shard]) -> None:
    source, target = pair
    target.done(copied(source.replica, 0))
    floor = source.done(Freeze(9)).version
    assert source.done(due(150)).count == 1  # a0
    assert source.there() == {"m0": 100, "m1": 200, "z0": 0}
    target.done(copied(source.replica, 1, 3))
    source.done(Release(9))
    assert source.there() == {}
    assert source.done(due(150)).count == 1  # what it left behind may go
    target.done(Own(9, 2, floor))
    assert target.there() == {"m0": 100, "m1": 200, "z0": 0}
    target.done(due(150))
    while source.done(Forget(9, 2)).count:
        source.there()
    assert target.there() == {"m1": 200, "z0": 0}


def test_frozen_keys_are_told_by_metadata_under_a_custom_strategy(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "one")
    keys = [json.dumps({"k": key}).encode() for key in ("a", "x")]
    shard.done(Insert("c", ["a0", "a1"], floats([1, 0, 0], [2, 0, 0]), keys, expires=[100, 100]))
    own = [routing_key(KEYS, 2, "", {"k": key}) for key in ("a", "x")]
    frozen: list[KeyRange] = [(own[1], own[1] + b"\0")]
    assert own[0] not in KeySet(frozen)
    shard.done(PrepareMove(9, 9, False, frozen, [(b"", None)], KEYS, 2), Freeze(9))
    assert shard.done(due(100)).count == 1
    assert [one.id for one in shard.replica.get("c", ["a0", "a1"], False)] == ["a1"]


# --- instants ---
@given(st.integers(1, 253_402_300_799_999_999))
def test_an_instant_reads_as_it_was_written(at: int) -> None:
    assert micros(rfc3339(at)) == at


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2024-02-29T12:00:00.5+01:00", 1_709_204_400_500_000),
        ("2024-01-01T00:00:00.0000001Z", 1_704_067_200_000_001),
        ("2024-01-01T00:00:00", None),
        ("2024-01-01", None),
        ("soon", None),
    ],
)
def test_micros(text: str, at: int | None) -> None:
    assert micros(text) == at
