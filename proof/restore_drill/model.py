"""What a copy may hold: who writes, what was asked for and acknowledged, and the judge of what came back."""

from __future__ import annotations

import bisect
import contextlib
import time

import needle
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.store import Store
from needle.base.errors import NeedleError
from proof.checkers.violation import Violation

IDS = 40
CLOCK_SECONDS = 0.002
"""The processes of a machine read one clock; a leader reads it a little before it proposes."""


class Writers:
    """Each writes its own ids, one number higher each time; every fourth write deletes. asked, done: of each id, when
    each of its numbers was asked for, and acknowledged."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self.asked: dict[str, list[tuple[float, int]]] = {}
        self.done: dict[str, list[tuple[float, int]]] = {}
        self._deletes: set[tuple[str, int]] = set()

    async def run(self, writer: int) -> None:
        """Until it is cancelled."""
        number = 0
        while True:
            for n in range(IDS):
                name = f"w{writer}-{n}"
                number += 1
                if number % 4 == 0:
                    self._deletes.add((name, number))
                self.asked.setdefault(name, []).append((time.time(), number))
                with contextlib.suppress(NeedleError):
                    if number % 4 == 0:
                        await self._client.delete([name], timeout=10)
                    else:
                        await self._client.insert(name, [float(number), 1.0], {"n": number}, timeout=10)
                    self.done.setdefault(name, []).append((time.time(), number))

    def judge(self, what: str, since: float, until: float, found: dict[str, int]) -> None:
        """Is this what there may have been at some moment between the two? Each document for itself: two shards are cut
        at moments of their own. Raises Violation."""
        for name, asked in self.asked.items():
            done = self.done.get(name, [])
            before = bisect.bisect_left(done, (since - CLOCK_SECONDS, 0))
            least = done[before - 1][1] if before else 0
            most = max((number for when, number in asked if when < until + CLOCK_SECONDS), default=0)
            may = [number for _, number in asked if least <= number <= most]
            if name in found:
                if found[name] not in may:
                    raise Violation("restore", f"{what}: {name} is {found[name]}, not one of {may}")
            elif least and not any((name, number) in self._deletes for number in may):
                raise Violation("restore", f"{what}: {name} is missing, and was {least} to {most}")
        if strange := set(found) - set(self.asked):
            raise Violation("restore", f"{what}: nobody wrote {sorted(strange)[:3]}")


def held(store: Store, backup: str) -> dict[str, int]:
    """The number of each id in a backup. Raises Violation if one is there twice."""
    found: dict[str, int] = {}
    for ref in read_manifest(store, backup).pieces():
        piece = read_piece(store, ref)
        for at, name in enumerate(piece.ids):
            if name in found:
                raise Violation("restore", f"{backup}: {name} is there twice")
            found[name] = int(piece.metadata[at].split(b":")[1].rstrip(b"}"))
    return found


async def served(client: needle.Client) -> dict[str, int]:
    """The number of each id in a running cluster. Raises Violation if one is there twice."""
    found: dict[str, int] = {}
    async for one in client.scan():
        if one.id in found:
            raise Violation("restore", f"{one.id} is there twice")
        found[one.id] = int(one.metadata["n"])
    return found
