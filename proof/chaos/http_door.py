"""HTTP as a stranger speaks it: connections, and what answers may be by the nodes' own OpenAPI document.

Invariant: an answer that the document does not allow is a violation, whoever asked. It must not know the workload.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, NamedTuple

import msgspec

from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError, Unavailable, from_wire
from proof.checkers.violation import Violation

BEYOND_SECONDS = 3.0
"""A request is given up so long after the time that it gives the node."""
HEAD_BYTES = 256 * 1024
PROBLEM = "application/problem+json"


class Answer(NamedTuple):
    """Of a request that was answered with 200."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Documented:
    """What may be answered. told: how often each error was, as "status code"."""

    def __init__(self, document: dict[str, Any]) -> None:
        """document: /openapi.json."""
        said = document["components"]["schemas"]["Problem"]["properties"]
        self._statuses, self._codes = set(said["status"]["enum"]), set(said["code"]["enum"])
        self.told: Counter[str] = Counter()

    def error(self, what: str, status: int, headers: dict[str, str], body: bytes) -> NeedleError:
        """The error that an answer tells. Raises Violation for one that is documented nowhere."""
        text = f"{what} was answered {status} {headers.get('content-type')}: {body[:500]!r}"
        if headers.get("content-type") != PROBLEM or status not in self._statuses:
            raise Violation("only documented errors", text)
        problem = msgspec.json.decode(body)
        if problem["code"] not in self._codes or problem["status"] != status or not problem["request_id"]:
            raise Violation("only documented errors", text)
        self.told[f"{status} {problem['code']}"] += 1
        if status >= 500 and not (problem["retryable"] or problem["code"] in ("outcome_unknown", "disk_full")):
            raise Violation("only documented errors", f"a fault of the node: {text}")
        found = from_wire(problem["code"], problem["detail"], problem.get("details"))
        found.details.setdefault("field", problem.get("field", ""))
        return found


class Connections:
    """Kept-alive connections to one address."""

    def __init__(self) -> None:
        self._free: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def ask(
        self, address: str, method: str, path: str, data: bytes | None, headers: dict[str, str], seconds: float
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. Raises Unavailable if nothing was sent, ConnectionLost or DeadlineExceeded if no
        whole answer came."""
        free = self._free.setdefault(address, [])
        try:
            if free:
                reader, writer = free.pop()
            else:
                host, _, port = address.rpartition(":")
                async with asyncio.timeout(seconds):
                    reader, writer = await asyncio.open_connection(host, int(port), limit=HEAD_BYTES)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{address}: {error!r}") from error
        told = [f"{method} {path} HTTP/1.1", "host: x", *(f"{name}: {value}" for name, value in headers.items())]
        if data is not None:
            told += ["content-type: application/json", f"content-length: {len(data)}"]
        try:
            async with asyncio.timeout(seconds + BEYOND_SECONDS):
                writer.write("\r\n".join([*told, "", ""]).encode() + (data or b""))
                answer = await _answer(reader)
        except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.close()
            raise ConnectionLost(f"{address}: {error!r}") from error
        except TimeoutError as error:
            writer.close()
            raise ConnectionLost(f"{address} did not answer in time") from error
        except BaseException:
            writer.close()
            raise
        if answer[1].get("connection") == "close":
            writer.close()
        else:
            free.append((reader, writer))
        return answer

    def close(self) -> None:
        """All of them."""
        for free in self._free.values():
            for _, writer in free:
                writer.close()
        self._free.clear()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ")[1])
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") != "chunked":
        return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, headers, b"".join(parts)


def lost(error: NeedleError) -> bool:
    """Whether no answer came."""
    return isinstance(error, ConnectionLost | DeadlineExceeded)
