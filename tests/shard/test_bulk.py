"""A bulk load on one replica: a file of documents, and the entry that names it."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from needle.base.config import Limits
from needle.base.errors import (
    CorruptDocuments,
    CorruptSegment,
    DiskFull,
    FileAwaited,
    InvalidArgument,
    StaleEpoch,
    Unavailable,
)
from needle.base.model import Metric, SearchRequest, VectorSpec, WriteResult
from needle.multiraft.ports import Applied
from needle.protocol.commands import (
    CreateCollection,
    Delete,
    DropCollection,
    LoadRows,
    Named,
    UpdateVectors,
    decode_logged,
)
from needle.protocol.stamps import head
from needle.protocol.upkeep_commands import LoadedFile
from needle.routing.strategy import CONSISTENT_HASH
from needle.server.adapters import ReplicaMachine
from needle.shard.apply.bulk import EFFECT_ROWS, lacks_files
from needle.shard.bulk.rows_file import Rows, RowsWriter, RowsWritten, checksum_of, read_rows
from needle.shard.bulk.staged import LOADS_MAX, Awaited, StagedFiles, rows_name
from needle.shard.bulk_checking import UNCOVERED_BYTES_MAX, Owning, check_load
from needle.shard.disk import ReplicaDisk
from needle.shard.effects import Position
from needle.shard.feeding import DOCUMENTS_MAX, EFFECTS_MAX, Wanted, read_changes
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec
from shard.test_costs import keeper_of

COUNT = 2500
VECTORS = np.random.default_rng(5).normal(size=(COUNT, 3)).astype("<f4")
IDS = [f"d{at}" for at in range(COUNT)]


def rows_file(ids: list[str] = IDS, vectors: np.ndarray = VECTORS) -> tuple[bytes, RowsWritten]:
    out = io.BytesIO()
    writer = RowsWriter(out)
    for at in range(0, len(ids), 700):
        part = ids[at : at + 700]
        metadata = [b'{"n":%d}' % (at + n) if n % 2 else b"" for n in range(len(part))]
        writer.add(Rows(part, metadata, vectors[at : at + len(part)].tobytes()))
    done = writer.end()
    return out.getvalue(), done


FILE, SAID = rows_file()


def stage(replica: Replica, data: bytes = FILE, said: RowsWritten = SAID, collection: int = 1) -> None:
    name = rows_name(collection, said.checksum)
    half = len(data) // 2
    assert replica.staged.put(name, len(data), 0, data[:half]) == half
    assert replica.staged.put(name, len(data), half, data[half:]) == -1


def load(said: RowsWritten = SAID, collection: int = 1, **other: Any) -> LoadRows:
    return LoadRows(collection, said.rows, said.size, said.checksum, other.pop("owned", 0), **other)


def opened(directory: Path, log: Log) -> Replica:
    replica = open_replica(directory)
    replica.apply(log.entries or log.add(CreateCollection(spec())))
    return replica


def nearest(replica: Replica, at: int) -> str:
    found = replica.search(SearchRequest(collection="c", vector=VECTORS[at].tobytes(), k=1))
    return str(found.ids[0])


def test_all_documents_of_a_file_appear_at_one_entry_and_are_as_if_they_were_written(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path / "a", log)
    stage(replica)
    [result] = replica.apply(log.add(load()))
    assert result == WriteResult(version=2, index=2, count=COUNT)
    assert replica.count("c") == COUNT
    assert nearest(replica, 1234) == "d1234"
    [one] = replica.get("c", ["d1"], with_vectors=True)
    assert (one.version, one.metadata, one.vector) == (2, b'{"n":1}', VECTORS[1].tobytes())
    assert replica.count_matching("c", b'{"n": {"$gte": 2401}}')[0] == 50
    replica.verify()
    [deleted, replaced] = replica.apply(log.add(put(["d7"], [[9, 9, 9]]), put(["new"], [[8, 8, 8]])))
    assert deleted.existed and not replaced.existed
    replica.checkpoint()
    digest = replica.digest()
    replica.close()
    again = open_replica(tmp_path / "a")
    assert (again.digest(), again.count("c")) == (digest, COUNT + 1)
    again.verify()
    again.close()


def test_a_replica_without_the_file_changes_nothing_and_goes_on_when_it_is_there(tmp_path: Path) -> None:
    log = Log()
    replica, other = opened(tmp_path / "a", log), opened(tmp_path / "b", log)
    stage(replica)
    entries = log.add(load(), put(["later"], [[1, 2, 3]]))
    replica.apply(entries)
    before = other.digest()
    with pytest.raises(FileAwaited):
        other.apply(entries)
    assert (other.digest(), other.applied_index()) == (before, 1)
    assert other.staged.awaited is not None and other.staged.awaited.name == rows_name(1, SAID.checksum)
    stage(other)
    assert len(other.apply(entries)) == 2
    assert other.digest() == replica.digest()
    assert other.staged.awaited is None


def test_a_file_is_said_to_be_here_only_once_it_is_durable(tmp_path: Path) -> None:
    """A majority of such answers is what an entry is proposed on."""

    class Recording(ReplicaDisk):
        done: ClassVar[list[tuple[str, str]]] = []

        def sync(self, path: str) -> None:
            super().sync(path)
            self.done.append(("sync", path))

        def rename(self, source: str, target: str) -> None:
            super().rename(source, target)
            self.done.append(("rename", target))

    staged, name = StagedFiles(str(tmp_path), Recording()), rows_name(1, SAID.checksum)
    path = staged.path(name)
    assert staged.put(name, len(FILE), 0, FILE[:100]) == 100 and staged.here(name) == 100
    Recording.done.clear()
    assert staged.put(name, len(FILE), 100, FILE[100:]) == -1
    last = [("sync", os.path.dirname(path)), ("sync", str(tmp_path))]
    assert Recording.done == [("sync", f"{path}.part"), ("rename", path), *last]


def test_a_file_that_changed_on_the_disk_is_not_believed(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    stage(replica)
    path = replica.staged.path(rows_name(1, SAID.checksum))
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2")
    with pytest.raises(FileAwaited):
        replica.apply(log.add(load()))
    assert not os.path.exists(path)


def test_a_repetition_is_answered_without_the_file_and_another_load_is_refused(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    stage(replica)
    replica.apply(log.add(load()))
    replica.staged.forget(1)
    [again] = replica.apply(log.add(load()))
    assert (again.existed, again.count) == (True, COUNT)
    other = RowsWritten(1, 100, "0" * 32)
    [refused] = replica.apply(log.add(load(other)))
    assert isinstance(refused, InvalidArgument) and refused.details["field"] == "collection"
    assert replica.count("c") == COUNT


def test_what_was_written_to_and_emptied_again_takes_no_load(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    stage(replica)
    replica.apply(log.add(put(["x"], [[1, 1, 1]])))
    [refused] = replica.apply(log.add(load()))
    assert isinstance(refused, InvalidArgument)
    replica.apply(log.add(DropCollection("c"), CreateCollection(spec())))
    stage(replica, collection=2)
    [done] = replica.apply(log.add(load(collection=2)))
    assert done.count == COUNT


def test_two_documents_of_one_id_are_refused_by_every_replica_alike(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    data, said = rows_file(["a", "b", "a"], VECTORS[:3])
    stage(replica, data, said)
    [refused] = replica.apply(log.add(load(said)))
    assert isinstance(refused, InvalidArgument) and refused.details["field"] == "ids"
    assert replica.count("c") == 0
    replica.apply(log.add(put(["x"], [[1, 1, 1]])))
    replica.verify()


def index_file(directory: Path) -> tuple[PublishedSegment, str, bytes]:
    """Of all documents: what it is, its name, and its bytes."""
    directory.mkdir()
    segment, path = build_segment(str(directory), 1, 0, COUNT - 1, [(np.arange(COUNT), VECTORS)], spec())
    return segment, os.path.basename(path), Path(path).read_bytes()


def load_with(segment: PublishedSegment) -> LoadRows:
    return load(indexes=[LoadedFile(segment.first, segment.last, segment.rows, segment.size, segment.checksum)])


def served_by_file(replica: Replica, segment: PublishedSegment) -> bool:
    """And no vector is in memory."""
    [vectors] = replica.held.collection_vectors()
    attached = [one.segment for one in vectors.attached()] == [segment] and not vectors.missing()
    return attached and not vectors.view().growing.chunks and nearest(replica, 77) == "d77"


def test_index_files_serve_from_the_entry_on(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path / "a", log)
    stage(replica)
    segment, name, data = index_file(tmp_path / "made")
    assert replica.staged.put(name, len(data), 0, data) == -1
    replica.apply(log.add(load_with(segment)))
    assert served_by_file(replica, segment)
    assert replica.staged.read(name, 0, len(data)) == data, "it stays for replicas that lack it"
    replica.staged.forget(1)
    replica.checkpoint()
    replica.close()
    assert served_by_file(open_replica(tmp_path / "a"), segment)


def test_a_replica_without_an_index_file_waits_for_it_so_that_its_vectors_do_not_come_into_memory(
    tmp_path: Path,
) -> None:
    log = Log()
    replica = opened(tmp_path / "a", log)
    stage(replica)
    segment, name, data = index_file(tmp_path / "made")
    entries = log.add(load_with(segment))
    with pytest.raises(FileAwaited):
        replica.apply(entries)
    awaited = replica.staged.awaited
    assert awaited == Awaited(1, segment.checksum, len(data), name) and awaited.name == name
    assert (replica.count("c"), replica.applied_index()) == (0, 1)
    replica.staged.put(name, len(data), 0, data)
    replica.apply(entries)
    assert served_by_file(replica, segment) and replica.staged.awaited is None
    gone = opened(tmp_path / "b", Log())
    stage(gone)
    gone.staged.lost = segment.checksum
    with pytest.raises(CorruptDocuments):
        gone.apply(entries)


def test_index_files_outlast_a_crash_in_the_transaction_and_the_sweep_after_it(tmp_path: Path) -> None:
    log, crash = Log(), [False]

    def failpoint(name: str) -> None:
        if crash[0] and name == "apply-before-commit":
            raise KeyboardInterrupt

    replica = open_replica(tmp_path / "a", failpoint)
    replica.apply(log.add(CreateCollection(spec())))
    stage(replica)
    segment, name, data = index_file(tmp_path / "made")
    replica.staged.put(name, len(data), 0, data)
    replica.save()
    crash[0] = True
    with pytest.raises(KeyboardInterrupt):
        replica.apply(log.add(load_with(segment)))
    for unnamed in (tmp_path / "a").rglob(f"segments/{name}"):  # the sweep's: the log that was applied names no file
        unnamed.unlink()
    swept = [False]

    def sweep(name_: str) -> None:
        if name_ == "apply-before-commit":
            swept[0] = True
            for unnamed in (tmp_path / "a").rglob(f"segments/{name}"):
                unnamed.unlink()

    again = open_replica(tmp_path / "a", sweep)
    again.apply(log.entries)
    assert swept == [True] and served_by_file(again, segment)


def test_a_load_whose_vectors_would_all_come_into_memory_is_refused_by_the_leader(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    rows = UNCOVERED_BYTES_MAX // 12 + 1
    everything = Owning(CONSISTENT_HASH, 1, [(b"", None)])
    for indexes in ([], [LoadedFile(0, 0, 1, 100, "0" * 32)]):
        asked = LoadRows(1, rows + len(indexes), 100, SAID.checksum, 0, 0, indexes)
        with pytest.raises(InvalidArgument) as caught:
            check_load(asked, staged, spec(), Limits(), everything)
        assert (caught.value.details["field"], caught.value.details["rows"]) == ("indexes", rows)
    staged.put(rows_name(1, SAID.checksum), len(FILE), 0, FILE)
    check_load(load(), staged, spec(), Limits(), everything)


@pytest.mark.parametrize("which", ["rows", "index"])
def test_a_file_that_changed_where_it_waits_goes_and_is_wanted_again(tmp_path: Path, which: str) -> None:
    """The load was refused for what the damaged file had in it, and so was each further attempt, for it stayed."""
    staged = StagedFiles(str(tmp_path / "staged"), ReplicaDisk())
    everything = Owning(CONSISTENT_HASH, 1, [(b"", None)])
    segment, name, data = index_file(tmp_path / "made")
    files = {rows_name(1, SAID.checksum): FILE, name: data}
    for one, content in files.items():
        staged.put(one, len(content), 0, content)
    damaged = next(iter(files)) if which == "rows" else name
    path = Path(staged.path(damaged))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(Unavailable, match="damaged on this node"):
        check_load(load_with(segment), staged, spec(), Limits(), everything)
    assert staged.here(damaged) == 0
    staged.put(damaged, len(files[damaged]), 0, files[damaged])
    check_load(load_with(segment), staged, spec(), Limits(), everything)


def test_the_keeper_deletes_index_files_that_came_with_a_load_once_the_collection_is_dropped(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path / "a", log)
    keeper = keeper_of(replica)

    def look() -> bool:
        keeper.kick()
        asyncio.run(keeper._files_pass())
        return os.path.exists(os.path.join(replica.held.segment_directory, name))

    segment, name, data = index_file(tmp_path / "made")
    assert not look()
    stage(replica)
    replica.staged.put(name, len(data), 0, data)
    replica.apply(log.add(load_with(segment)))
    assert look()
    replica.apply(log.add(DropCollection("c")))
    assert not look()


def test_rows_that_no_replica_has_any_more_are_damage_that_a_snapshot_mends(tmp_path: Path) -> None:
    log = Log()
    replica, other = opened(tmp_path / "a", log), opened(tmp_path / "b", log)
    stage(replica)
    entries = log.add(load())
    replica.apply(entries)
    other.staged.lost = SAID.checksum
    with pytest.raises(CorruptDocuments):
        other.apply(entries)
    assert other.damage is not None
    image = tmp_path / "image"
    image.mkdir()
    replica.export_snapshot(str(image))
    other.install_snapshot(str(image))
    assert other.damage is None and other.digest() == replica.digest()


def test_a_file_that_was_whole_but_not_compared_when_its_node_was_killed_is_taken_up_again(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    name = rows_name(1, SAID.checksum)
    staged.put(name, len(FILE) + 1, 0, FILE)
    assert staged.here(name) == len(FILE)
    assert staged.put(name, len(FILE), len(FILE) - 10, FILE[-10:]) == -1


def test_a_crash_before_the_commit_leaves_nothing_and_the_log_brings_all(tmp_path: Path) -> None:
    log, crash = Log(), [False]

    def failpoint(name: str) -> None:
        if crash[0] and name == "apply-before-commit":
            raise KeyboardInterrupt

    replica = open_replica(tmp_path, failpoint)
    replica.apply(log.add(CreateCollection(spec())))
    stage(replica)
    crash[0] = True
    with pytest.raises(KeyboardInterrupt):
        replica.apply(log.add(load()))
    again = open_replica(tmp_path)
    again.apply(log.entries)
    assert again.count("c") == COUNT
    again.verify()


def test_reads_of_that_shard_do_not_wait_for_a_load_and_see_what_was_before(tmp_path: Path) -> None:
    log, writing, go_on, armed = Log(), threading.Event(), threading.Event(), [False]

    def failpoint(name: str) -> None:
        if armed[0] and name == "apply-before-commit":
            writing.set()
            assert go_on.wait(60)

    replica = open_replica(tmp_path, failpoint)
    replica.apply(log.add(CreateCollection(spec()), CreateCollection(spec("other"))))
    replica.apply(log.add(put(["q"], [[1, 2, 3]], collection="other")))
    stage(replica)
    replica.save()
    armed[0] = True
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(replica.apply, log.add(load()))
        try:
            assert writing.wait(60)
            [read] = threads.submit(replica.get, "other", ["q"], True).result(30)
            assert read.vector == floats([1, 2, 3])
            assert threads.submit(replica.get, "c", ["d1"], False).result(30) == []
            assert replica.count("c") == 0 and not loading.done()
        finally:
            go_on.set()
        assert loading.result(60)[0].count == COUNT
    assert len(replica.get("c", ["d1"], False)) == 1


def test_a_load_for_which_there_is_no_room_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    log, full = Log(), [False]

    def failpoint(name: str) -> None:
        if full[0] and name == "apply-before-commit":
            raise DiskFull("no room")

    replica = open_replica(tmp_path, failpoint)
    replica.apply(log.add(CreateCollection(spec())))
    stage(replica)
    replica.save()
    full[0] = True
    with pytest.raises(DiskFull):
        replica.apply(log.add(load()))
    assert (replica.count("c"), replica.get("c", ["d1"], False), replica.applied_index()) == (0, [], 1)
    full[0] = False
    replica.apply(log.entries)
    assert replica.count("c") == COUNT
    replica.verify()


def test_a_change_feed_tells_each_document_once_and_a_page_costs_what_it_tells(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    ids = [f"d{at}" for at in range(2 * DOCUMENTS_MAX + 5000)]
    data, said = rows_file(ids, np.zeros((len(ids), 3), "<f4"))
    stage(replica, data, said)
    replica.apply(log.add(load(said), put(["later"], [[1, 2, 3]])))
    told, position = list[str](), Position(1)
    while True:
        page = replica.effects.after(position, EFFECTS_MAX, DOCUMENTS_MAX, 1)
        assert page is not None and len(page.effects) <= 2 + DOCUMENTS_MAX // EFFECT_ROWS
        fed = read_changes(replica.view, replica.effects, Wanted("c", position, 999, False), Limits())
        assert fed is not None
        told += [one.document.id for one in fed.told]
        position = fed.reached
        if not fed.more:
            break
    assert told == [*ids, "later"]


def test_a_snapshot_holds_what_was_loaded_and_that_it_was(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path / "a", log)
    stage(replica)
    replica.apply(log.add(load()))
    image = tmp_path / "image"
    image.mkdir()
    replica.export_snapshot(str(image))
    other = open_replica(tmp_path / "b")
    other.install_snapshot(str(image))
    assert (other.digest(), other.count("c")) == (replica.digest(), COUNT)
    [again] = other.apply(log.add(load()))
    assert again.existed


def test_a_load_for_other_ranges_of_keys_is_refused(tmp_path: Path) -> None:
    from needle.protocol.move_commands import PrepareMove
    from needle.routing.ranges import fingerprint
    from needle.routing.strategy import ShardStrategy

    log = Log()
    replica = opened(tmp_path, log)
    stage(replica)
    everything = [(b"", None)]
    prepare = PrepareMove(
        move=1, incoming=False, ranges=[(b"m", None)], strategy=ShardStrategy.RANGE, shard_count=2, owned=everything,
        oldest=1,
    )  # fmt: skip
    [said] = replica.apply(log.add(prepare))
    assert isinstance(said, WriteResult), said
    [refused] = replica.apply(log.add(load(owned=1)))
    assert isinstance(refused, StaleEpoch)
    [done] = replica.apply(log.add(load(owned=fingerprint(everything))))
    assert done.count == COUNT


def test_a_load_is_known_by_the_first_bytes_of_its_entry(tmp_path: Path) -> None:
    entries = Log().add(load(indexes=[LoadedFile(0, 9, 10, 100, "0" * 32)]), put(["load"], [[1, 1, 1]]))
    machine = ReplicaMachine(open_replica(tmp_path))
    stamped = msgspec.structs.replace(entries[0], data=head(1) + entries[0].data[1:])
    assert [machine.takes_long(of) for of in ([entries[0]], [entries[1]], entries[::-1], [stamped])] == [
        *(True, False, True, True)
    ]
    assert isinstance(decode_logged(stamped.data), LoadRows)
    assert not machine.takes_long([Applied(3, 1, b"", None)])


TITLE = "c/title"


def with_title(log: Log, replica: Replica) -> list[Named]:
    """Have the collection have a named vector; one, for the first document of a command."""
    of = VectorSpec(dimensions=2, metric=Metric.L2).stored_as(TITLE, "c")
    replica.apply(log.add(CreateCollection(of)))
    return [Named(TITLE, [0], floats([4, 5]))]


def test_the_rows_of_a_named_vector_cannot_be_loaded(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    named = with_title(log, replica)
    data, said = rows_file(IDS[:5], VECTORS[:5, :2])
    stage(replica, data, said, collection=2)
    [refused] = replica.apply(log.add(load(said, collection=2)))
    assert isinstance(refused, InvalidArgument) and refused.details["field"] == "collection"
    [done] = replica.apply(log.add(put(["d0"], [[1, 2, 3]], named=named)))
    assert isinstance(done, WriteResult), done
    replica.save()
    replica.verify()


def test_a_collection_with_named_vectors_takes_documents_without_them(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    named = with_title(log, replica)
    stage(replica)
    [done] = replica.apply(log.add(load()))
    assert done.count == COUNT
    title = SearchRequest(collection="c", vector=floats([4, 5]), k=5, vector_name=TITLE)
    assert list(replica.search(title).ids) == []
    update = UpdateVectors("c", ["d7"], floats([4, 5]), name=TITLE)
    results = replica.apply(log.add(update, put(["d8"], [[1, 2, 3]], named=named), Delete("c", ["d9"])))
    assert all(isinstance(one, WriteResult) for one in results), results
    assert sorted(replica.search(title).ids) == ["d7", "d8"]
    replica.save()
    replica.verify()


# --- files -----------------------------------------------------------------------------------------------------------
def test_parts_go_on_where_they_were_broken_off(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    name = rows_name(1, SAID.checksum)
    assert staged.here(name) == 0
    staged.put(name, len(FILE), 0, FILE[:100])
    assert (staged.here(name), staged.has(name)) == (100, False)
    with pytest.raises(Unavailable) as caught:
        staged.put(name, len(FILE), 200, FILE[200:])
    assert caught.value.details["here"] == 100
    assert staged.put(name, len(FILE), 50, FILE[50:]) == -1
    assert staged.read(name, 0, 8) == b"NDLROWS1"
    assert staged.put(name, len(FILE), 0, FILE[:10]) == -1, "it is here already"


def test_a_file_with_another_checksum_than_its_name_is_refused(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    name = rows_name(1, "0" * 32)
    with pytest.raises(Unavailable) as caught:  # to be sent again: a power cut may have spoilt what came before
        staged.put(name, len(FILE), 0, FILE)
    assert caught.value.details == {"here": 0} and staged.here(name) == 0
    for bad in ("../x", "1-rows-zz.rows", f"1-rows-{'0' * 32}.seg"):
        with pytest.raises(InvalidArgument):
            staged.put(bad, 1, 0, b"x")


def test_damaged_rows_are_lacking_as_those_that_are_gone(tmp_path: Path) -> None:
    """`needle recover` gave such a load up, and had said nothing of it."""
    staged, name = StagedFiles(str(tmp_path), ReplicaDisk()), rows_name(1, SAID.checksum)
    command = LoadRows(1, SAID.rows, SAID.size, SAID.checksum, 0)
    assert lacks_files(staged, command)
    staged.put(name, len(FILE), 0, FILE)
    assert not lacks_files(staged, command)
    Path(staged.path(name)).write_bytes(FILE[:-1] + bytes([FILE[-1] ^ 1]))
    assert lacks_files(staged, command) and staged.has(name), "who looks leaves it where it is"


def other_rows(staged: StagedFiles, count: int, collection: int = 1) -> None:
    """The rows of so many other loads, prepared for a collection."""
    for number in range(count):
        data, said = rows_file([f"other{number}"], VECTORS[:1])
        staged.put(rows_name(collection, said.checksum), len(data), 0, data)


def test_a_collection_has_the_rows_of_some_loads_at_most(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    name = rows_name(1, SAID.checksum)
    other_rows(staged, LOADS_MAX - 1)
    staged.put(name, len(FILE), 0, FILE[:100])
    staged.put(name, len(FILE), 100, FILE[100:])
    data, said = rows_file(["a"], VECTORS[:1])
    with pytest.raises(InvalidArgument):
        staged.put(rows_name(1, said.checksum), len(data), 0, data)
    staged.put(rows_name(2, said.checksum), len(data), 0, data)
    assert staged.collections() == {1, 2}
    staged.forget(1)
    assert staged.collections() == {2}


@pytest.mark.parametrize("number", ["0", "01", "-1", "1" * 20, "1" * 300, "1" * 5000, "\u0663"])
def test_numbers_in_names_are_bounded(tmp_path: Path, number: str) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    for name in (rows_name(1, SAID.checksum).replace("1-", f"{number}-", 1), f"1-0-{number}-{SAID.checksum}.seg"):
        if number == "0" and name.endswith(".seg"):
            assert staged.here(name) == 0, "the first ordinal"
            continue
        with pytest.raises(InvalidArgument):
            staged.put(name, 100, 0, b"x")
        with pytest.raises(InvalidArgument):
            staged.here(name)
    assert staged.collections() == set()


def test_parts_of_other_loads_count(tmp_path: Path) -> None:
    staged = StagedFiles(str(tmp_path), ReplicaDisk())
    for number in range(LOADS_MAX):
        staged.put(rows_name(1, f"{number:032x}"), 1000, 0, b"x")
    with pytest.raises(InvalidArgument):
        staged.put(rows_name(1, SAID.checksum), len(FILE), 0, FILE)


def test_what_a_committed_entry_names_is_taken_though_other_loads_were_prepared(tmp_path: Path) -> None:
    log = Log()
    replica = opened(tmp_path, log)
    other_rows(replica.staged, LOADS_MAX)
    entries = log.add(load())
    with pytest.raises(FileAwaited):
        replica.apply(entries)
    stage(replica)
    [done] = replica.apply(entries)
    assert done.count == COUNT


def test_a_file_of_rows_that_is_cut_or_changed_is_known(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(FILE)
    assert checksum_of(str(path)) == SAID.checksum
    assert sum(len(rows.ids) for rows in read_rows(str(path))) == SAID.rows
    for cut in (0, 5, 20, len(FILE) // 2, len(FILE) - 20):
        path.write_bytes(FILE[:cut])
        assert checksum_of(str(path)) != SAID.checksum
        with pytest.raises(CorruptSegment):
            list(read_rows(str(path)))
    assert floats([1.0]) and FILE[:8] == b"NDLROWS1"
