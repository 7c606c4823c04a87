"""A crash at every persistence step never loses an acknowledged write, and every failpoint is a real place."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import needle.multiraft.host
from multiraft.harness import FAST, Cluster, put, until
from needle.base.errors import NeedleError
from needle.multiraft.failpoints import FAILPOINTS

TINY = replace(FAST, snapshot_threshold=6, snapshot_chunk_bytes=64)
WHILE_WRITING = [
    "log.before_commit",
    "log.inside_commit",
    "log.after_commit",
    "apply.before",
    "apply.after",
    "compact.before_checkpoint",
    "compact.after_checkpoint",
    "compact.after_commit",
]


def test_the_names_are_those_in_the_code() -> None:
    code = "".join(path.read_text() for path in sorted(Path(needle.multiraft.host.__file__).parent.rglob("*.py")))
    assert sorted(set(re.findall(r"failpoint\(\s*\"([a-z_.]+)\"", code))) == sorted(FAILPOINTS)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", WHILE_WRITING)
@pytest.mark.parametrize("victim_leads", [True, False])
async def test_acknowledged_writes_survive_a_crash(tmp_path: Path, name: str, lazy: bool, victim_leads: bool) -> None:
    async with Cluster(str(tmp_path), config=TINY, seed=len(name)) as cluster:
        leader = await cluster.leader()
        victim = leader if victim_leads else next(n for n in cluster.running() if n is not leader)
        for node in cluster.nodes.values():
            node.lazy = node.machines[0].lazy = lazy
        acknowledged: dict[str, int] = {}
        attempted: set[str] = set()

        async def client(number: int) -> None:
            for turn in range(12):
                key = f"{number}-{turn}"
                attempted.add(key)
                for node in cluster.running():
                    if node.host.is_leader(0):
                        try:
                            await node.host.propose(0, put(key, turn), 2)
                            acknowledged[key] = turn
                        except NeedleError:
                            pass  # not acknowledged: it may be there or not
                        break
                await asyncio.sleep(0)

        victim.crash_at(name, 2)
        writing = asyncio.gather(*(client(number) for number in range(3)))
        if name.startswith("compact") or not victim_leads:
            await writing
            while not victim.crashed:
                with suppress(NeedleError):  # who leads may crash beneath it
                    await cluster.put("more", 1, timeout=2)
        await until(lambda: victim.crashed)
        await victim.down()
        await victim.start()
        await writing
        await cluster.put("last", 1)
        state = await cluster.converged()
        assert {key: state.get(key) for key in acknowledged} == acknowledged
        assert set(state) <= attempted | {"last", "more"}


@pytest.mark.parametrize("name", ["bootstrap.after_log", "bootstrap.after_apply"])
async def test_a_crash_while_bootstrapping(tmp_path: Path, name: str) -> None:
    cluster = Cluster(str(tmp_path))
    for node in cluster.nodes.values():
        original = node._failpoint
        node._failpoint = lambda reached, node=node, original=original: (  # type: ignore[method-assign]
            original(reached) if reached != name else _die(name)
        )
        with pytest.raises(_Died):
            await node.start()
        node._failpoint = original  # type: ignore[method-assign]
    async with cluster:
        await cluster.put("a", 1)
        assert await cluster.converged() == {"a": 1}


class _Died(BaseException):
    pass


def _die(name: str) -> None:
    raise _Died(name)


async def test_the_whole_cluster_dies_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY, groups=3) as cluster:
        for number in range(10):
            await asyncio.gather(*(cluster.put(f"k{number}", number, group) for group in cluster.groups))
        for node in cluster.nodes.values():
            await node.down()
        for node in cluster.nodes.values():
            await node.start()
        for group in cluster.groups:
            await cluster.put("after", 1, group)
            state = await cluster.converged(group)
            assert state == {**{f"k{number}": number for number in range(10)}, "after": 1}
