"""One collection alone comes back, under its name or another one, into the cluster that serves it and others."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import needle
from backup.killing import Killed
from backup.test_processes import ROWS, WAITING, contents, fill
from needle import backup as backups
from needle.backup.archiving import Archiver
from needle.backup.around import Around
from needle.backup.one_collection import MARK
from needle.backup.store import Store
from needle.base.errors import CollectionExists, InvalidArgument, RestoreDiffers, Unavailable
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH
from needle.system import SystemClock

pytestmark = pytest.mark.campaign
Model = dict[str, dict[str, object]]


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ProcessCluster]:
    (tmp_path / "nodes").mkdir()
    async with ProcessCluster(tmp_path / "nodes", 1, **WAITING) as made:
        await made.create(2, 1, CONSISTENT_HASH)
        yield made


async def marks(client: needle.Client) -> list[str]:
    return [one.name for one in await client.collections() if one.name.startswith(MARK)]


async def test_it_comes_back_beside_the_others(cluster: ProcessCluster, tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        made = await backups.create(client, store)
        digests = {one.spec.name: one.digest for one in made.manifest.collections}
        await client.delete([f"böok-{n}" for n in range(10, ROWS, 2)], collection="books")
        now = await contents(client)
        for name in ("books", "empty", "read"):  # with documents, without any, and an alias
            with pytest.raises(CollectionExists, match=r"another name \(--as\)"):
                await backups.restore(client, store, collection="books", name=name)
        with pytest.raises(InvalidArgument, match=r"collection = 'bools' .* books, empty, later, lives"):
            await backups.restore(client, store, collection="bools")
        with pytest.raises(InvalidArgument, match="without a collection"):
            await backups.restore(client, store, name="other")
        with pytest.raises(InvalidArgument, match=r"name = 'restoring-x' .* does not begin with restoring-"):
            await backups.restore(client, store, collection="books", name="restoring-x")
        with pytest.raises(InvalidArgument, match="printable text"):
            await backups.restore(client, store, collection="books", name="x" * 300)
        assert await marks(client) == [] and await contents(client) == now

        done = await backups.restore(client, store, collection="books", name="books-before")
        assert done.digests == {"books-before": digests["books"]} and not done.resumed
        assert done.documents == len(model["books"])
        assert await contents(client) == {**now, "books-before": model["books"]}
        described = await client.describe_collection("books-before")
        assert list(described.fields) == ["n"] and await client.aliases() == {"read": "books"}
        assert len(await client.search([0.5] * 16, k=3, collection="books-before")) == 3
        await backups.wait_indexed(client, done.digests)

        await client.drop_collection("lives")
        assert (await backups.restore(client, store, collection="lives")).digests == {"lives": digests["lives"]}
        assert await contents(client) == {**now, "lives": model["lives"], "books-before": model["books"]}
        assert await marks(client) == []


async def test_killed_anywhere_it_goes_on_and_no_other_one_begins(cluster: ProcessCluster, tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        await backups.create(client, store)
        runs = 0
        while True:
            runs += 1
            seen = 0

            def progress(_: int, left: int = runs) -> None:
                nonlocal seen
                seen += 1
                if seen == left:
                    raise Killed

            try:
                done = await backups.restore(client, store, collection="books", name="again", progress=progress)
                break
            except Killed:
                assert runs < 50 and len(await marks(client)) == 1
            if runs == 1:
                with pytest.raises(CollectionExists, match="another restore is under way"):
                    await backups.restore(client, store, collection="books", name="else")
                with pytest.raises(Unavailable, match="is under way in this cluster"):
                    await backups.create(client, store)
        assert done.resumed and runs > 2
        assert await contents(client) == {**model, "again": model["books"]} and await marks(client) == []

        def written(_: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            await backups.restore(client, store, collection="books", name="written", progress=written)
        await client.insert("stranger", [1.0] * 16, collection="written")
        with pytest.raises(RestoreDiffers, match="collection written has"):
            await backups.restore(client, store, collection="books", name="written")


class AfterAStop(SystemClock):
    """Of a process that was stopped for ten seconds."""

    def monotonic(self) -> float:
        return super().monotonic() + 10.0


class AfterASuspend(SystemClock):
    """Of a machine that was suspended for ten seconds."""

    def wall(self) -> float:
        return super().wall() + 10.0


class Stopped:
    """What a restore has around it that is stopped when it has read its first piece. clock: that it has then."""

    def __init__(self, clock: type[SystemClock] = AfterAStop) -> None:
        self._clock = clock()
        self.stopped, self.goes_on = asyncio.Event(), asyncio.Event()
        self.around = Around(blocking=self._blocking)

    async def _blocking(self, call: Any, *arguments: Any) -> Any:
        done = await asyncio.to_thread(call, *arguments)
        if getattr(call, "__name__", "") == "_read" and not self.stopped.is_set():
            self.stopped.set()
            await self.goes_on.wait()
            object.__setattr__(self.around, "clock", self._clock)
        return done


async def emptied(client: needle.Client, model: Model) -> None:
    """Nothing of a whole backup is there any more."""
    await client.remove_alias("read")
    for held in model:
        await client.drop_collection(held)


async def broken_off(client: needle.Client, store: Store) -> None:
    """A restore that is killed when a part of the first collection is written."""
    seen = 0

    def killed(_: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise Killed

    with pytest.raises(Killed):
        await backups.restore(client, store, progress=killed)


@pytest.mark.parametrize(("name", "clock"), [(None, AfterAStop), ("again", AfterAStop), ("again", AfterASuspend)])
async def test_of_two_that_carry_it_on_the_one_that_came_first_ends(
    cluster: ProcessCluster, tmp_path: Path, name: str | None, clock: type[SystemClock]
) -> None:
    """An operator runs the command again that only seems to be gone: what it had still to write would come over what is
    written once the other one is done."""
    store, one = backups.open_store(str(tmp_path / "target")), Stopped(clock)
    async with cluster.connect() as client:
        model = await fill(client)
        await backups.create(client, store)
        if name is None:
            await emptied(client, model)
        of, to = (None, "books") if name is None else ("books", name)
        first = asyncio.create_task(backups.restore(client, store, collection=of, name=name, around=one.around))
        await one.stopped.wait()
        assert (await backups.restore(client, store, collection=of, name=name)).resumed
        await client.delete(sorted(model["books"]), collection=to)
        one.goes_on.set()
        with pytest.raises(CollectionExists, match="has taken the place of this one, or has ended it"):
            await first
        assert (await contents(client))[to] == {} and await marks(client) == []


async def test_what_was_made_again_under_its_name_is_not_written_over(cluster: ProcessCluster, tmp_path: Path) -> None:
    store, one = backups.open_store(str(tmp_path / "target")), Stopped()
    async with cluster.connect() as client:
        model = await fill(client)
        await backups.create(client, store)
        first = asyncio.create_task(backups.restore(client, store, collection="books", name="again", around=one.around))
        await one.stopped.wait()
        await client.drop_collection("again")
        await client.create_collection("again", dimensions=16, metric="l2")
        theirs = {id_: {"theirs": True} for id_ in model["books"]}
        vectors = [[1.0] * 16 for _ in theirs]
        await client.insert_batch(
            ids=list(theirs), vectors=vectors, metadatas=list(theirs.values()), collection="again"
        )
        one.goes_on.set()
        with pytest.raises(CollectionExists, match="collection again was dropped, or made again by somebody"):
            await first
        assert [dict(held.metadata) async for held in client.scan(collection="again")] == list(theirs.values())


@pytest.mark.parametrize("theirs", ["books", "later"])
async def test_of_a_whole_backup_nothing_is_written_over_that_was_made_meanwhile(
    cluster: ProcessCluster, tmp_path: Path, theirs: str
) -> None:
    """A restore that went on asked for no collection whose it was: it wrote over what an application had, which had
    made its collections by itself."""
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        await backups.create(client, store)
        settings = {one.name: one for one in await client.collections()}[theirs]
        await emptied(client, model)
        await broken_off(client, store)
        there = {one.name for one in await client.collections()}
        assert "books" in there and "later" not in there
        if theirs in there:
            await client.drop_collection(theirs)
        await client.create_collection(theirs, dimensions=settings.dimensions, metric="l2", ttl=settings.ttl or None)
        id_ = next(iter(model[theirs]))
        await client.insert(id_, [9.0] * settings.dimensions, {"theirs": 1}, collection=theirs)
        with pytest.raises(CollectionExists, match=f"a collection {theirs} .*nothing was written to it"):
            await backups.restore(client, store)
        assert [(one.id, one.metadata) async for one in client.scan(collection=theirs)] == [(id_, {"theirs": 1})]
        await client.drop_collection(theirs)
        assert (await backups.restore(client, store)).resumed
        assert await contents(client) == model and await marks(client) == []


async def test_what_an_earlier_release_began_goes_on_once_what_it_restored_is_dropped(
    cluster: ProcessCluster, tmp_path: Path
) -> None:
    """It noted nothing of what was its own, so that nobody can tell that from what an application wrote meanwhile."""
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        await backups.create(client, store)
        await emptied(client, model)
        await broken_off(client, store)
        (mark,) = await marks(client)
        notes = [one.id async for one in client.scan(collection=mark) if one.id.startswith(f"{mark}-")]
        assert (await client.delete(notes, collection=mark)).count == 1
        before = await client.count(collection="books")
        with pytest.raises(
            CollectionExists, match=r"an earlier release, if that began it, .* Drop books and restore again"
        ):
            await backups.restore(client, store)
        assert await client.count(collection="books") == before > 0
        await client.drop_collection("books")
        assert (await backups.restore(client, store)).resumed
        assert await contents(client) == model and await marks(client) == []


async def test_two_that_begin_at_once_do_not_both_go_on(
    cluster: ProcessCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client, cluster.connect() as another:
        await fill(client)
        await backups.create(client, store)
        create = client.create_collection

        def killed(_: int) -> None:
            raise Killed

        async def after_the_other(*arguments: Any, **named: Any) -> None:
            with pytest.raises(Killed):
                await backups.restore(another, store, collection="books", name="theirs", progress=killed)
            await create(*arguments, **named)

        monkeypatch.setattr(client, "create_collection", after_the_other)
        with pytest.raises(CollectionExists, match=r"another restore is under way .* collection books, as theirs, of"):
            await backups.restore(client, store, collection="books", name="ours")
        names = {one.name for one in await client.collections()}
        assert "theirs" in names and "ours" not in names and len(await marks(client)) == 1


async def test_one_whose_place_was_taken_leaves_the_other_ones_mark(
    cluster: ProcessCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the collection that the other one had made, and dropped the mark: then that one ended, too, and none
    could go on."""
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client, cluster.connect() as another:
        model = await fill(client)
        await backups.create(client, store)
        create = client.documents.create_collection

        def killed(_: int) -> None:
            raise Killed

        async def after_the_other(*arguments: Any) -> Any:
            if arguments[0].name == "again":
                with pytest.raises(Killed):
                    await backups.restore(another, store, collection="books", name="again", progress=killed)
            return await create(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(client.documents, "create_collection", after_the_other)
            with pytest.raises(CollectionExists, match="has taken the place of this one"):
                await backups.restore(client, store, collection="books", name="again")
        assert (await backups.restore(another, store, collection="books", name="again")).resumed
        assert (await contents(client))["again"] == model["books"] and await marks(client) == []


async def archived(client: needle.Client, store: Store) -> None:
    archiver = Archiver(client, store)
    await archiver.look(flush=True)
    await archiver.close()


async def test_the_second_before_a_mistake(cluster: ProcessCluster, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    store = backups.open_store(target)
    async with cluster.connect() as client:
        model = await fill(client)
        await archived(client, store)
        before = int(time.time() * 1e6)
        await client.delete([f"böok-{n}" for n in range(10, ROWS, 2)], collection="books")
        await archived(client, store)
        now = await contents(client)
        with pytest.raises(CollectionExists, match="collection books already"):
            await backups.restore_at(client, store, before, collection="books")
        with pytest.raises(InvalidArgument, match="collection = 'bools'"):
            await backups.restore_at(client, store, before, collection="bools")

        def killed(_: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            await backups.restore_at(client, store, before, collection="books", name="there", progress=killed)
        await archived(client, store)
        amid = int(time.time() * 1e6)
        done = await backups.restore_at(client, store, before, collection="books", name="there")
        assert done.resumed and await contents(client) == {**now, "there": model["books"]}
        await archived(client, store)
        # An instant amid that restore is one of any others: it says of no restore that it is under way.
        await client.drop_collection("there")
        await client.remove_alias("read")
        for name in model:
            await client.drop_collection(name)
        await backups.restore_at(client, store, amid)
        found = await contents(client)
        assert {name: found[name] for name in now} == now and await marks(client) == []

    words = ["restore", target, "--cluster", cluster.cluster, "-c", "lives", "--as", "by command", "--no-wait-index"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "needle", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 1 and b"there is no backup" in out
    async with cluster.connect() as client:
        await backups.create(client, store)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "needle", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0 and b"collection lives, as by command, of backup" in out, out
    async with cluster.connect() as client:
        assert (await contents(client))["by command"] == model["lives"]


@pytest.mark.parametrize("killed", [True, False])
async def test_what_somebody_made_meanwhile_is_not_written_over(
    cluster: ProcessCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """An application makes its collection, as it is in the backup, when the restore has looked whether there is one."""
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        made = await backups.create(client, store)
        spec = next(one.spec for one in made.manifest.collections if one.spec.name == "books")
        await client.remove_alias("read")
        await client.drop_collection("books")
        document = sorted(model["books"])[5]
        create = client.create_collection

        async def marked(*arguments: Any, **named: Any) -> None:
            await create(*arguments, **named)
            await client.documents.create_collection(spec, True, 30.0)
            await client.insert(document, [1.0] * 16, {"written": "just now"}, collection="books")
            if killed:
                raise Killed

        monkeypatch.setattr(client, "create_collection", marked)
        with pytest.raises(Killed if killed else CollectionExists):
            await backups.restore(client, store, collection="books")
        monkeypatch.undo()
        if killed:
            with pytest.raises(CollectionExists, match="did not note that it made it: drop books"):
                await backups.restore(client, store, collection="books")
        else:
            assert await marks(client) == []
        assert list((await contents(client))["books"]) == [document]
        await client.drop_collection("books")
        await backups.restore(client, store, collection="books")
        assert (await contents(client))["books"] == model["books"]


async def test_what_was_made_anew_while_it_was_broken_off_is_not_written_over(
    cluster: ProcessCluster, tmp_path: Path
) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster.connect() as client:
        model = await fill(client)
        made = await backups.create(client, store)

        def written(_: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            await backups.restore(client, store, collection="books", name="again", progress=written)
        # Who is refused is told what is under way: a backup that is there, and which collection of it.
        told = f"collection books, as again, of backup {made.manifest.id}[ ,]"
        with pytest.raises(CollectionExists, match=told):
            await backups.restore(client, store, collection="books", name="else")
        with pytest.raises(Unavailable, match=told):
            await backups.create(client, store)
        await client.drop_collection("again")
        await client.create_collection("again", dimensions=16, metric="l2")
        await client.insert("theirs", [1.0] * 16, collection="again")
        with pytest.raises(CollectionExists, match="drop again and restore again"):
            await backups.restore(client, store, collection="books", name="again")
        assert list((await contents(client))["again"]) == ["theirs"]
        await client.drop_collection("again")
        done = await backups.restore(client, store, collection="books", name="again")
        assert done.resumed and (await contents(client))["again"] == model["books"] and await marks(client) == []
