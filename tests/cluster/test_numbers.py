"""Real processes: a number that cannot be is refused by every method of the client that is awaited, with its field, its
value and what is allowed; whatever is asked, the answer is of Needle's own errors, and the node goes on.

The methods are found by their signatures, so that a new one, or a new parameter, is tried without a line here.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import InvalidArgument
from needle.client.client import Client
from needle.distributed import RebalanceConfig, Wish
from needle.routing.plans import ShardSplit

ODD = (2**70, -(2**70), -1, float("nan"), float("inf"), True, "1", 10**400)
"""What a careless caller passes for a number."""
NUMBERS = ("int", "float", "Seconds")
SENSIBLE: dict[str, Any] = {
    "id": "d-1",
    "ids": ["d-1"],
    "vector": [1.0, 0.0],
    "vectors": [[1.0, 0.0]],
    "query": [1.0, 0.0],
    "queries": [[1.0, 0.0]],
    "metadata": {"a": 1},
    "set": {"a": 1},
    "expected_version": 1,
    "keywords": "words",
    "field": "a",
    "name": "named",
    "node": "node-1",
    "nodes": ["node-1"],
    "source": "node-1",
    "target": "node-2",
    "old": "node-1",
    "new": "node-2",
    "shard": 0,
    "replicas": 1,
    "weight": 1.0,
    "collection": "docs",
    "alias": "other",
    "role": "reader",
    "documents": [("d-1", [1.0, 0.0])],
    "dimensions": 2,
    "zone": "rack",
    "wish": Wish(),
    "config": RebalanceConfig(),
    "filter": {"a": 1},
}
ALSO = {
    "hybrid_search": ("keywords", "vector"),
    "patch": ("set",),
    "patch_where": ("set",),
    **dict.fromkeys(("insert", "insert_if_absent", "compare_and_set", "update_vector"), ("vector",)),
    **dict.fromkeys(("insert_batch", "insert_each"), ("documents",)),
    "update_vectors": ("vectors",),
    "search_many": ("queries",),
    **{f"search{kind}": ("query",) for kind in ("", "_strong", "_leased", "_eventual", "_partial")},
    "watch": ("query",),
}
"""What a method cannot do without, though a default stands there."""
FREE = ("min_score", "max_distance")
"""Where any finite number may stand."""


def numeric(parameter: inspect.Parameter) -> bool:
    """Whether a number may be passed, by the annotation."""
    words = str(parameter.annotation).replace("|", " ").replace("[", " ").replace("]", " ").split()
    return any(word in NUMBERS for word in words) and "Sequence" not in words


def tried() -> list[tuple[str, str]]:
    """Each method with each of its numbers."""
    found = []
    for name, method in inspect.getmembers(Client, callable):
        if name.startswith("_") or not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
            continue
        found += [(name, p.name) for p in inspect.signature(method).parameters.values() if numeric(p)]
    return found


async def outcome(client: Client, name: str, field: str, value: object) -> BaseException | None:
    """What a call with this value raises."""
    method = getattr(client, name)
    given: dict[str, Any] = {field: value}
    for parameter in inspect.signature(method).parameters.values():
        if parameter.name in given or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is parameter.empty or parameter.name in ALSO.get(name, ()):
            given[parameter.name] = SENSIBLE.get(parameter.name)
        elif parameter.name == "timeout":
            given["timeout"] = 1.0
    try:
        made = method(**given)
        if hasattr(made, "__aiter__"):
            async for _ in made:
                break
        else:
            await made
    except Exception as error:  # noqa: BLE001 - that is what is looked at
        return error
    return None


async def test_every_number_that_cannot_be_is_refused_with_its_field(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=1) as cluster:
        await cluster.create(1, 1)
        wrong = []
        async with cluster.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2)
            for name, field in tried():
                for value in ODD[3:] if field in FREE else ODD:
                    error, said = await outcome(client, name, field, value), f"{name}({field}={str(value)[:12]})"
                    if not isinstance(error, InvalidArgument):
                        wrong.append(f"{said}: {error!r}"[:200])
                    elif field not in f"{error.details.get('field')} {error.message}":
                        wrong.append(f"{said} does not name it: {error.message[:120]}")
            for wish in (Wish(shards=2**70), Wish(retire=(2**70,)), Wish(split=ShardSplit(shard=2**70, into=1))):
                for ask in (client.plan_rebalance(wish), client.start_rebalance(wish=wish)):
                    try:
                        await ask
                    except InvalidArgument:
                        continue
                    except Exception as error:  # noqa: BLE001
                        wrong.append(f"{wish}: {error!r}")
                    else:
                        wrong.append(f"{wish} was taken")
            assert await client.cluster_status()  # the node goes on
        assert not wrong, "\n".join(wrong)


def test_most_methods_are_tried() -> None:
    assert len({name for name, _ in tried()}) > 90
