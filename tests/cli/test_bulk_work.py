"""The directory of a bulk load: what is deleted in it is what the load made."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from needle.base.config import Limits
from needle.base.errors import InvalidArgument
from needle.base.model import CollectionSpec, Metric
from needle.cli.app import app
from needle.cli.bulk import loading
from needle.cli.bulk.job import Job, Work
from needle.cli.bulk.loading import Asked, Loaded
from needle.cli.bulk.pieces import Piece
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH


def job(stored: str = "books") -> Job:
    return Job(
        stored,
        CollectionSpec(name=stored, dimensions=3, metric=Metric.L2),
        initial_map(CONSISTENT_HASH, 1),
        [],
        [],
        True,
    )


def test_what_was_divided_before_there_is_a_collection_is_kept_for_it(tmp_path: Path) -> None:
    work, made = Work(str(tmp_path / "load")), job("books@7")
    draft = msgspec.structs.replace(made, stored="", spec=msgspec.structs.replace(made.spec, name=""), indexes=False)
    assert not work.begin(draft)
    work.piece(0).mkdir(parents=True)
    work.shard(0).mkdir(parents=True)
    assert not work.begin(made)
    assert work.piece(0).exists() and not work.shard(0).exists()
    assert work.begin(made)
    other = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, metric=Metric.COSINE))
    assert not work.begin(other), "other numbers are stored for this metric"
    assert not work.piece(0).exists()


def test_what_was_judged_by_other_limits_is_judged_again(tmp_path: Path) -> None:
    """Else the leader refuses it, once there is a collection, and says of no document in which file and row it is."""
    work, made = Work(str(tmp_path / "load")), job("books@7")
    assert not work.begin(made)
    work.piece(0).mkdir(parents=True)
    for limits in (Limits(metadata_bytes_max=100), Limits(id_bytes_max=20)):
        assert not work.begin(msgspec.structs.replace(made, limits=limits))
        assert not work.piece(0).exists()
        work.piece(0).mkdir(parents=True)
    assert work.begin(msgspec.structs.replace(made, limits=limits))
    assert work.piece(0).exists()


def test_what_a_worker_is_sent_of_a_source_does_not_grow_with_it(tmp_path: Path) -> None:
    """Each task had all pieces: of 40,000 that were 111 GB."""

    class Looking:
        """Workers that only see how much they are sent."""

        def map(self, call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
            sizes.extend(len(pickle.dumps(one)) for one in arguments)
            return iter([{"0": 1}] * len(arguments))

        def close(self) -> None: ...

    sent = {}
    for count in (10, 1000):
        sizes: list[int] = []
        pieces = [Piece("books.parquet", number, 10, 7, "x") for number in range(count)]
        load = msgspec.structs.replace(job(), pieces=pieces)
        loading._divide(load, Work(str(tmp_path / str(count))), Looking(), lambda *_: None)
        assert len(sizes) == count + 1
        sent[count] = max(sizes)
    assert sent[1000] < sent[10] + 100


def test_what_others_put_into_the_directory_stays(tmp_path: Path) -> None:
    for name in ("pieces", "shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("not of a load")
    work = Work(str(tmp_path))
    with pytest.raises(InvalidArgument) as caught:
        work.begin(job())
    assert caught.value.details["field"] == "work"
    work.end()
    assert sorted(path.name for path in tmp_path.rglob("mine")) == ["mine", "mine"]


def test_a_load_deletes_all_that_it_made_and_nothing_else(tmp_path: Path) -> None:
    work = Work(str(tmp_path / "load"))
    assert not work.begin(job())
    work.piece(3).mkdir(parents=True)
    work.shard(1).mkdir(parents=True)
    assert work.begin(job()) and work.piece(3).exists()
    assert not work.begin(job("others")), "of another load"
    assert work.piece(3).exists() and not work.shard(1).exists(), "it is divided alike"
    work.shard(1).mkdir(parents=True)
    beside = work.root / "notes"
    beside.write_text("kept")
    work.end()
    assert [path.name for path in work.root.iterdir()] == ["notes"]
    beside.unlink()
    assert not work.begin(job())
    work.end()
    assert not work.root.exists()


def test_two_commands_do_not_work_in_one_directory(tmp_path: Path) -> None:
    place = str(tmp_path / "load")
    with Work(place).held():
        with pytest.raises(InvalidArgument) as caught, Work(place).held():
            pass
        assert caught.value.details["field"] == "work"
        work = Work(place)
        assert not work.begin(job()), "the file of the lock is no file of others"
        work.piece(0).mkdir(parents=True)
        work.end()
    assert not (tmp_path / "load").exists()
    with Work(place).held():
        pass


def test_a_collection_with_a_slash_in_its_name_leads_to_no_other_directory(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), tmp_path / "a.parquet")
    work = tmp_path / "work"
    work.mkdir(mode=0o755)
    (work / "load-a%2F..%2F..%2Fx").write_text("a file, so that the error tells where")
    said = CliRunner().invoke(app, ["bulk-load", str(tmp_path / "a.parquet"), "a/../../x", "--work", str(work)])
    assert isinstance(said.exception, InvalidArgument)
    assert said.exception.message.startswith(f"{work}/load-a%2F..%2F..%2Fx: the directory of --work cannot be used")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("other", [False, True])
def test_the_directory_that_the_command_made_goes_when_no_other_load_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    def done(asked: Asked, *_: object, quiet: bool) -> Loaded:
        Work(asked.directory).begin(job())
        return Loaded(1, 1, 1, 1, 1, {})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("needle.cli.bulk.pieces.pieces_of", lambda _: ([], 3))
    monkeypatch.setattr("needle.cli.bulk_load_command._loaded", done)
    if other:
        (tmp_path / ".needle-bulk" / "load-others").mkdir(parents=True)
    said = CliRunner().invoke(app, ["bulk-load", "x.parquet", "books", "--json"])
    assert said.exit_code == 0, said.output
    assert [path.name for path in tmp_path.rglob("*")] == ([".needle-bulk", "load-others"] if other else [])
