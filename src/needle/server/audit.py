"""The audit log: who did what to the cluster as an administrator, and who was refused, one line of JSON each.

Invariants: no call waits for the log's disk; what waits to be written is bounded in bytes. What the bound, or a disk
that takes nothing, left out is counted in the next line that is written. A line holds no keys and no documents.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from typing import Final, NoReturn

import msgspec

from needle.base.access import without_keys
from needle.base.audit_config import AuditConfig
from needle.base.errors import ConfigError, Forbidden, NeedleError, Unauthenticated
from needle.base.news import News
from needle.base.runtime import Clock

log = logging.getLogger("needle.server")

WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
REFUSALS_A_SECOND: Final = 50
"""Of more the number is told: who tries keys must not fill the disk."""
TEXT_MAX: Final = 200
REFUSALS: Final = (Forbidden, Unauthenticated)

Runs = Callable[..., Awaitable[None]]


class Act(msgspec.Struct, omit_defaults=True):
    """One line. at: when it ended, RFC 3339. door: `binary` or `http`. call: a method, or an HTTP method and a path.
    outcome: "done", or an error's code. key: the name of the caller's API key. about: what the call names. seconds: how
    long it took. left_out: lines before this one that were not written."""

    at: str
    node: str
    door: str
    call: str
    outcome: str
    key: str = ""
    remote: str = ""
    request_id: str = ""
    about: str = ""
    seconds: float | None = None
    left_out: int = 0


class _File(RotatingFileHandler):
    """Only its owner reads it, and what cannot be written is raised."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600))

    def handleError(self, record: logging.LogRecord) -> NoReturn:
        error = sys.exception()
        assert error is not None  # it is called where one is handled
        raise error


class Audit:
    """See the module. clock: of the node."""

    def __init__(self, config: AuditConfig, data_dir: str, node_id: str, clock: Clock) -> None:
        self._config = config
        self._path = os.path.join(data_dir, config.file)
        self._node_id = node_id
        self._clock = clock
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._refused_in = (0, 0)
        self._told = News(keys_max=1)
        self._news = asyncio.Event()
        self._file: _File | None = None

    def open(self) -> None:
        """Raises ConfigError if the file cannot be written to."""
        try:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(self._path).st_mode):
                    raise ConfigError(f"audit.file = {self._path} is not a file", field="audit.file")
            self._file = _File(self._path, maxBytes=self._config.bytes_max, backupCount=self._config.files_max)
        except OSError as error:
            text = f"audit.file = {self._path} cannot be written: {error.strerror}"
            raise ConfigError(text, field="audit.file") from error

    def note(
        self,
        door: str,
        call: str,
        error: NeedleError | None,
        *,
        key: str = "",
        remote: str = "",
        request_id: str = "",
        about: str = "",
        seconds: float = 0.0,
        outcome: str = "",
    ) -> None:
        """Something was done, or refused. outcome: where `error` does not say it."""
        if isinstance(error, REFUSALS) and self._are_too_many_refused():
            self._left_out += 1
            return
        act = Act(
            at=datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds"),
            node=self._node_id,
            door=door,
            call=without_keys(call)[:TEXT_MAX],
            outcome=outcome or (error.code if error is not None else "done"),
            key=key,
            remote=remote,
            request_id=without_keys(request_id),
            about=without_keys(about)[:TEXT_MAX],
            seconds=round(seconds, 6) if seconds else None,
            left_out=self._left_out,
        )
        line = msgspec.json.encode(act)
        if self._waiting_bytes + len(line) > WAITING_BYTES_MAX:
            self._left_out += 1
            return
        self._left_out = 0
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._news.set()

    def _are_too_many_refused(self) -> bool:
        second, count = int(self._clock.monotonic()), 0
        if self._refused_in[0] == second:
            count = self._refused_in[1]
        self._refused_in = (second, count + 1)
        return count >= REFUSALS_A_SECOND

    async def run(self, runs: Runs) -> None:
        """Write what comes, in another thread."""
        while True:
            await self._news.wait()
            self._news.clear()
            lines, self._waiting = self._waiting, deque()
            self._waiting_bytes = 0
            try:
                await runs(self._write, lines)
            except OSError as error:
                self._failed(lines, error)

    def _write(self, lines: deque[bytes]) -> None:
        """A line that is written is taken off."""
        file = self._file
        assert file is not None
        while lines:
            file.emit(logging.makeLogRecord({"msg": lines[0].decode()}))
            lines.popleft()

    def _failed(self, lines: deque[bytes], error: OSError) -> None:
        """What was left out before these lines stood in them."""
        self._left_out += sum(1 + msgspec.json.decode(line, type=Act).left_out for line in lines)
        if self._told.is_news("not written", self._clock.monotonic()):
            log.error("%d lines of the audit log were not written: %s: %s", self._left_out, self._path, error)

    def close(self) -> None:
        """Write what waits, and close the file."""
        lines, self._waiting = self._waiting, deque()
        file, self._file = self._file, None
        if file is None:
            return
        try:
            self._file = file
            self._write(lines)
        except OSError as error:
            self._failed(lines, error)
        finally:
            self._file = None
            with suppress(OSError):
                file.close()
