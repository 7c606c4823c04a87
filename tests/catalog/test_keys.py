"""API keys in the catalog: what is taken, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from catalog.catalog_util import topology
from needle.base.access import KeyInfo, Role, digest_of
from needle.base.errors import AlreadyExists, InvalidArgument, NeedleError, Unavailable
from needle.base.model import WriteResult
from needle.base.rates import Rates
from needle.catalog import keys
from needle.catalog.state import execute
from needle.protocol.catalog_commands import decode, encode
from needle.protocol.key_commands import CreateKey, LimitKey, RevokeKey
from needle.routing.topology import Topology

DIGEST = digest_of("a key")


def made(name: str = "shop", digest: bytes = DIGEST, role: Role = Role.READER, allowed: Any = None) -> CreateKey:
    return CreateKey(name, digest, role, allowed)


def done(now: Topology, index: int, command: Any) -> Topology:
    changed, result = execute(now, index, decode(encode(command)))
    assert isinstance(result, WriteResult), result
    return changed


def refused(now: Topology, command: Any) -> NeedleError:
    changed, result = execute(now, 99, command)
    assert changed is now
    assert isinstance(result, NeedleError)
    return result


def test_keys_come_and_go_by_one_entry_each() -> None:
    now = done(topology(), 5, made("shop", role=Role.WRITER, allowed=["b", "a", "b"]))
    now = done(now, 6, made("ops", digest_of("another"), Role.ADMIN))
    assert now.keys == (
        KeyInfo("ops", digest_of("another"), Role.ADMIN, None, 6),
        KeyInfo("shop", DIGEST, Role.WRITER, ("a", "b"), 5),
    )
    assert now.version == 6
    gone, result = execute(now, 7, RevokeKey("shop"))
    assert [key.name for key in gone.keys] == ["ops"]
    assert isinstance(result, WriteResult) and result.existed
    again, result = execute(gone, 8, RevokeKey("shop"))
    assert again is gone
    assert isinstance(result, WriteResult) and not result.existed


def test_a_name_and_a_key_are_there_once() -> None:
    now = done(topology(), 5, made())
    assert isinstance(refused(now, made(digest=digest_of("another"))), AlreadyExists)
    assert isinstance(refused(now, made("other")), AlreadyExists)


@pytest.mark.parametrize(
    "command",
    [
        made(""),
        made("a b"),
        made("x" * 65),
        made(digest=DIGEST[:16]),
        made(role=Role.ADMIN, allowed=["a"]),
        made(role=Role.MONITOR, allowed=["a"]),
        made(allowed=[]),
        made(allowed=["x" * 1000]),
        made(allowed=[str(n) for n in range(keys.COLLECTIONS_MAX + 1)]),
    ],
)
def test_what_cannot_be_a_key_changes_nothing(command: CreateKey) -> None:
    assert isinstance(refused(topology(), command), InvalidArgument)


def test_there_are_no_keys_before_the_cluster_and_no_more_than_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(refused(Topology(), made()), Unavailable)
    monkeypatch.setattr(keys, "KEYS_MAX", 1)
    assert isinstance(refused(done(topology(), 5, made()), made("b", digest_of("b"))), InvalidArgument)


@pytest.mark.parametrize(
    ("role", "bound"),
    [
        (Role.ADMIN, b'{"tenant":"a"}'),
        (Role.MONITOR, b'{"tenant":"a"}'),
        (Role.READER, b"{}"),
        (Role.READER, b'{"tenant":'),
        (Role.READER, b'{"$no":1}'),
        (Role.READER, b'{"tenant":"' + b"a" * 1024 + b'"}'),
    ],
)
def test_a_filter_that_binds_nobody_or_cannot_be_read_is_refused(role: Role, bound: bytes) -> None:
    assert isinstance(refused(topology(), CreateKey("k", DIGEST, role, None, bound)), InvalidArgument)


def test_a_key_keeps_its_filter_and_needs_nodes_that_know_of_it() -> None:
    command = CreateKey("k", DIGEST, Role.WRITER, None, b'{"tenant":"a"}')
    assert done(topology(), 5, command).keys[0].filter == b'{"tenant":"a"}'
    assert (command.needs(), made().needs(), made(role=Role.MONITOR).needs()) == (3, 2, 5)


def test_rates_of_a_key_change_by_one_entry() -> None:
    now = done(topology(), 5, CreateKey("k", DIGEST, Role.WRITER, None, b"", Rates(1, 2, 3)))
    now = done(now, 6, CreateKey("ops", digest_of("another"), Role.ADMIN))
    assert now.keys[0].rates == Rates(1, 2, 3)
    changed = done(now, 7, LimitKey("k", Rates(bytes=9)))
    assert (changed.keys[0].rates, changed.keys[0].since) == (Rates(0, 0, 9), 5)
    for command in (
        LimitKey("nobody", Rates()),
        LimitKey("ops", Rates(requests=1)),
        LimitKey("k", Rates(requests=-1)),
        CreateKey("admin", digest_of("x"), Role.ADMIN, None, b"", Rates(1)),
    ):
        assert isinstance(refused(changed, command), InvalidArgument)
    assert CreateKey("k", DIGEST, Role.READER, None, b"", Rates(1)).needs() == 3
