"""Whatever a stranger calls over the binary protocol: it is answered or refused by name, and the node serves on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.calm import CALM
from needle.base.config import RaftConfig
from needle.base.errors import Internal, NeedleError
from needle.connecting import system_caller
from needle.distributed import RaftCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls, catalog_commands, commands
from needle.protocol.peer_calls import WHO, WhoCall
from needle.rpc.transport import RpcClient
from needle.server.service.methods import NEEDS

EXAMPLES = 25
"""By method."""
NUMBERS = st.one_of(
    st.integers(-3, 6), st.sampled_from([2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]), st.floats()
)
TEXTS = st.one_of(
    st.sampled_from(["", "default", "a", "/../x", "\x00", "n1", "strong", "long" * 100]), st.text(max_size=9)
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.binary(max_size=9))
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


def of(kind: msgspec.inspect.Type, depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly values of a type as they travel; now and then any others."""
    info = msgspec.inspect
    right: st.SearchStrategy[Any]
    if isinstance(kind, info.IntType):
        right = st.one_of(st.sampled_from([0, 1, 2, 3]), NUMBERS)
    elif isinstance(kind, info.FloatType):
        right = st.one_of(st.sampled_from([0.0, 0.02, 0.1, 1.0]), NUMBERS)
    elif isinstance(kind, info.StrType):
        right = TEXTS
    elif isinstance(kind, info.BytesType):
        right = st.one_of(st.binary(max_size=20), COMMANDS) if depth < 3 else st.binary(max_size=20)
    elif isinstance(kind, info.BoolType):
        right = st.booleans()
    elif isinstance(kind, info.EnumType):
        right = st.sampled_from([one.value for one in kind.cls])
    elif isinstance(kind, info.LiteralType):
        right = st.sampled_from(kind.values)
    elif isinstance(kind, info.UnionType):
        right = st.one_of(*(of(one, depth) for one in kind.types))
    elif isinstance(kind, info.TupleType):
        right = st.tuples(*(of(one, depth + 1) for one in kind.item_types)).map(list)
    elif isinstance(kind, info.VarTupleType | info.ListType):
        right = st.lists(of(kind.item_type, depth + 1), max_size=3)
    elif isinstance(kind, info.DictType):
        right = st.dictionaries(TEXTS, of(kind.value_type, depth + 1), max_size=3)
    elif isinstance(kind, info.StructType) and kind.array_like and depth < 6:
        tag = [] if kind.tag is None else [st.just(kind.tag)]
        right = st.tuples(*tag, *(of(field.type, depth + 1) for field in kind.fields)).map(list)
    else:
        right = ANYTHING
    return st.one_of(*([right] * 14), ANYTHING)


def encoded(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError):
        return b"\xc1"


COMMANDS: st.SearchStrategy[bytes] = st.deferred(
    lambda: st.one_of(
        st.tuples(
            st.sampled_from([b"\x01", b"\x02", b"\x03"]), of(msgspec.inspect.type_info(kind), 3).map(encoded)
        ).map(b"".join)
        for kind in (commands.Command, catalog_commands.CatalogCommand)
    )
)


@pytest.fixture(scope="module")
def running(module_path: Path) -> Iterator[tuple[asyncio.Runner, RaftCluster, RpcClient]]:
    (port,) = free_ports(1)
    config = RaftConfig(node_id="n1", cluster_nodes=[f"n1=127.0.0.1:{port}"], data_dir=str(module_path), **CALM)
    with asyncio.Runner() as runner:
        cluster = RaftCluster(config)
        runner.run(cluster.start())
        runner.run(cluster.wait_ready(60))

        async def caller() -> RpcClient:
            return system_caller("needle")

        client = runner.run(caller())
        yield runner, cluster, client
        runner.run(client.close())
        runner.run(cluster.stop())


class Faults(logging.Handler):
    """What a node logs as its own mistake."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


@pytest.mark.parametrize("method", sorted(NEEDS))
def test_whatever_is_called_is_answered_or_refused_by_name(
    running: tuple[asyncio.Runner, RaftCluster, RpcClient], method: str
) -> None:
    runner, cluster, client = running
    node = cluster._node
    assert node is not None
    kind = node.service._methods[method][0] if method in node.service._methods else None
    bodies = st.binary(max_size=40) if kind is None else of(msgspec.inspect.type_info(kind)).map(encoded)
    faults = Faults()
    logging.getLogger().addHandler(faults)

    async def ask(name: str, body: bytes) -> None:
        try:
            await client.call(node.address, name, body, 0.2)
        except Internal as error:
            raise AssertionError(f"{name}({body!r}): {error}") from error
        except NeedleError:
            pass

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def check(body: bytes) -> None:
        runner.run(ask(method, body))
        assert node.alive(), f"{method}({body!r}) ended the node"
        assert not faults.found, f"{method}({body!r}): {faults.found}"

    try:
        check()
        runner.run(client.call(node.address, WHO, calls.encode(WhoCall()), 5.0))
    finally:
        logging.getLogger().removeHandler(faults)
