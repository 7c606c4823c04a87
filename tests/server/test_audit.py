"""The audit log's file: lines, bounds, rotation, a disk that takes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needle
from needle.base.access import ADMIN, READER, Identity, new_key
from needle.base.audit_config import AuditConfig
from needle.base.errors import ConfigError, Forbidden, Unavailable
from needle.base.ids import shard_group
from needle.base.model import CollectionSpec
from needle.protocol import calls, catalog_commands, commands
from needle.protocol.peer_calls import CATALOG, CatalogCall
from needle.routing.topology import NodeInfo
from needle.rpc.handler import Peer
from needle.rpc.promise import Promise
from needle.server.audit import REFUSALS_A_SECOND, TEXT_MAX, WAITING_BYTES_MAX, Audit
from needle.server.service.audited import LOOKED_AT_BYTES, Audited


class _Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.75e9 + self.now


def audit_in(directory: Path, clock: _Clock | None = None, **settings: Any) -> Audit:
    audit = Audit(AuditConfig(file="audit.jsonl", **settings), str(directory), "a", clock or _Clock())
    audit.open()
    return audit


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def at_once(fn: Callable[..., None], *arguments: object) -> None:
    fn(*arguments)


def test_a_line_says_who_did_what(tmp_path: Path) -> None:
    audit = audit_in(tmp_path)
    audit.note("http", "POST /v1/keys", None, key="ops", remote="127.0.0.1:1", request_id="r", seconds=0.25)
    audit.note("binary", "hello", Forbidden("no"))
    audit.close()
    assert lines(tmp_path / "audit.jsonl") == [
        {
            "at": "2025-06-15T15:23:20.000+00:00", "node": "a", "door": "http", "call": "POST /v1/keys",
            "outcome": "done", "key": "ops", "remote": "127.0.0.1:1", "request_id": "r", "seconds": 0.25,
        },
        {"at": "2025-06-15T15:23:20.000+00:00", "node": "a", "door": "binary", "call": "hello", "outcome": "forbidden"},
    ]  # fmt: skip
    assert stat.S_IMODE(os.stat(tmp_path / "audit.jsonl").st_mode) == 0o600


def test_a_key_that_stands_where_a_name_belongs_is_not_written(tmp_path: Path) -> None:
    """As of who revokes a key by itself, or has it for an id of requests."""
    audit, key = audit_in(tmp_path), new_key(bytes(range(32)))
    audit.note("http", f"DELETE /v1/keys/{key}", None, request_id=key, about=f"name={key}")
    audit.note("http", f"DELETE {'x' * (TEXT_MAX - 30)}{key}", None, about="name=ndl_my-key")
    audit.close()
    first, second = lines(tmp_path / "audit.jsonl")
    told = [first[name] for name in ("call", "request_id", "about")]
    assert told == ["DELETE /v1/keys/ndl_...", "ndl_...", "name=ndl_..."]
    assert second["call"].endswith("xndl_...") and second["about"] == "name=ndl_my-key"


def test_who_tries_keys_does_not_fill_the_disk(tmp_path: Path) -> None:
    clock = _Clock()
    audit = audit_in(tmp_path, clock)
    for _ in range(REFUSALS_A_SECOND + 30):
        audit.note("binary", "hello", Forbidden("no"))
    clock.now += 1
    audit.note("binary", "step_down", None)
    audit.note("binary", "hello", Forbidden("no"))
    audit.close()
    written = lines(tmp_path / "audit.jsonl")
    assert len(written) == REFUSALS_A_SECOND + 2
    assert [line["left_out"] for line in written if "left_out" in line] == [30]
    assert written[-2]["call"] == "step_down"


async def test_what_waits_is_bounded_and_what_a_disk_did_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = audit_in(tmp_path)
    for _ in range(2 * WAITING_BYTES_MAX // 300):
        audit.note("binary", "x" * 200, None)
    waiting = len(audit._waiting)
    assert waiting * 200 < WAITING_BYTES_MAX
    file = audit._file
    assert file is not None
    with monkeypatch.context() as broken:
        broken.setattr(file, "emit", _no_room)
        task = asyncio.ensure_future(audit.run(at_once))
        await turns()
    audit.note("binary", "step_down", None)
    await turns()
    task.cancel()
    audit.close()
    (line,) = lines(tmp_path / "audit.jsonl")
    assert line["left_out"] >= waiting


async def test_lines_that_a_disk_did_not_take_are_counted_with_those_left_out_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = audit_in(tmp_path)
    for _ in range(REFUSALS_A_SECOND + 30):
        audit.note("binary", "hello", Forbidden("no"))
    with monkeypatch.context() as broken:
        broken.setattr(audit._file, "emit", _no_room)
        task = asyncio.ensure_future(audit.run(at_once))
        await turns()
        audit.note("binary", "step_down", None)  # tells of the refusals, and is not written either
        await turns()
    audit.note("binary", "step_down", None)
    await turns()
    task.cancel()
    audit.close()
    assert [line["left_out"] for line in lines(tmp_path / "audit.jsonl")] == [REFUSALS_A_SECOND + 30 + 1]


def _drop_in_catalog(hops: int) -> bytes:
    return calls.encode(CatalogCall(catalog_commands.encode(catalog_commands.DropCollection("c", 7)), 1.0, hops))


def _padded(call: bytes) -> bytes:
    """What nobody reads, behind all that is read."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(call), b"x" * LOOKED_AT_BYTES])


DROP = calls.encode(calls.WriteCall(shard_group(0), commands.encode(commands.DropCollection("c"))))
CREATE = calls.encode(
    calls.WriteCall(1 << 40, commands.encode(commands.CreateCollection(CollectionSpec(name="c", dimensions=2))))
)
REGISTER = calls.encode(
    CatalogCall(catalog_commands.encode(catalog_commands.RegisterNode(NodeInfo(id="b", address="h:1", incarnation=1))))
)


@pytest.mark.parametrize(
    ("method", "body", "told"),
    [
        (CATALOG, _drop_in_catalog(0), "DropCollection"),
        (CATALOG, _drop_in_catalog(1), "DropCollection"),
        (CATALOG, REGISTER, "RegisterNode"),
        (calls.WRITE, DROP, "DropCollection"),
        (calls.WRITE, _padded(DROP), "DropCollection"),
        (calls.WRITE, _padded(CREATE), "CreateCollection"),
    ],
)
def test_no_form_of_a_call_hides_it(tmp_path: Path, method: str, body: bytes, told: str) -> None:
    def refused(*_: object) -> bytes:
        raise Forbidden("no")

    async def done(*_: object) -> bytes:
        return b""

    for begin, outcome in ((refused, "forbidden"), (done, "done")):
        audit = audit_in(tmp_path)
        audited = Audited(audit, _Clock(), random.Random(1), begin)
        peer = Peer("", 0, "h:2", Identity("ops", ADMIN))
        with suppress(Forbidden):
            asyncio.run(_answer(audited.on_request(peer, method, body)))
        audit.close()
        assert [lines(tmp_path / "audit.jsonl")[-1][name] for name in ("call", "outcome")] == [told, outcome]


def test_a_call_of_the_binary_protocol_has_the_id_that_its_client_gave_it(tmp_path: Path) -> None:
    """It was a random one, which stands in no log."""

    async def done(*_: object) -> bytes:
        return b""

    audit = audit_in(tmp_path)
    audited = Audited(audit, _Clock(), random.Random(1), done)
    with needle.request_id("order-4711"):
        asyncio.run(_answer(audited.on_request(Peer("", 0, "h:2", Identity("ops", ADMIN)), calls.WRITE, DROP)))
    audit.close()
    assert [line["request_id"] for line in lines(tmp_path / "audit.jsonl")] == ["order-4711"]


async def _answer(answer: Any) -> None:
    await answer


async def test_a_read_of_a_key_of_some_collections_hears_that_its_caller_has_gone(tmp_path: Path) -> None:
    """It took a worker from others until it ended, and was not answered when the node stopped."""

    class Read(Promise[bytes]):
        def cancel(self) -> None:
            self.set_exception(Unavailable("given up"))

    audit = audit_in(tmp_path)
    audited = Audited(audit, _Clock(), random.Random(1), lambda *_: Read())
    peer = Peer("", 0, "h:2", Identity("k", READER, frozenset({"books"})))
    answer = audited.on_request(peer, calls.SEARCH, b"")
    assert isinstance(answer, Promise)
    answer.cancel()
    assert answer.done()
    with pytest.raises(Unavailable, match="given up"):
        await answer
    audit.close()


def test_a_large_write_of_documents_is_no_call_of_an_administrator(tmp_path: Path) -> None:
    insert = commands.Insert("drop", ["create"], b"\0" * 8, [b""])
    body = _padded(calls.encode(calls.WriteCall(shard_group(0), commands.encode(insert))))
    audit = audit_in(tmp_path)
    assert (
        Audited(audit, _Clock(), random.Random(1), lambda *_: b"").on_request(
            Peer("", 0, "h:2", Identity("ops", ADMIN)), calls.WRITE, body
        )
        == b""
    )
    audit.close()
    assert lines(tmp_path / "audit.jsonl") == []


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_files_are_renamed_at_their_bound_and_some_are_kept(tmp_path: Path) -> None:
    audit = audit_in(tmp_path, bytes_max=1 << 16, files_max=2)
    for _ in range(2000):
        audit.note("binary", "x" * 100, None)
    audit.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(path.stat().st_size <= 1 << 16 for path in tmp_path.iterdir())
    assert all(lines(tmp_path / name) for name in names)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    with pytest.raises(ConfigError, match="is not a file"):
        audit_in(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        audit_in(tmp_path / "nowhere")
