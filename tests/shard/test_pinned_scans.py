"""Scans that are pinned to one index of a shard's log: what they see, what is kept for them, and how they end."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from needle.base.errors import CollectionNotFound, NeedleError, Overloaded, ScanEnded, StaleEpoch
from needle.base.model import WriteResult
from needle.protocol.commands import (
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    EndPins,
    Expire,
    Patch,
    PinScan,
    UpdateVectors,
)
from needle.protocol.move_commands import Forget, Freeze, PrepareMove, Release
from needle.routing.ranges import fingerprint
from needle.routing.strategy import RANGE
from needle.shard.documents.scans import Seen
from needle.shard.documents.sqlite_file import FILE_NAME, connect
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

Content = dict[str, tuple[Any, bytes, int]]
"""By id: metadata, vector, instant."""


class Shard:
    """A replica with its log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.replica = open_replica(directory)
        self.log = Log()
        self.done(CreateCollection(spec()))

    def told(self, *commands: Command) -> Any:
        """The last one's result."""
        return self.replica.apply(self.log.add(*commands))[-1]

    def done(self, *commands: Command) -> WriteResult:
        result = self.told(*commands)
        assert isinstance(result, WriteResult), result
        return result

    def pin(self, token: int = 7) -> tuple[int, int]:
        return self.done(PinScan("c", token, 0, 0, 16)).version, token

    def purge(self) -> None:
        while self.replica.tidy(all_of_it=True):
            pass

    def reopened(self) -> None:
        self.replica.close()
        self.replica = open_replica(self.directory)

    def stored(self) -> tuple[int, int, int]:
        """Rows of documents, of vectors, and versions that are kept."""
        with self.replica._store.reading() as connection:
            return tuple(  # type: ignore[return-value]
                connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("documents", "vectors", "kept")
            )


def seen(replica: Replica, pin: tuple[int, int] | None, limit: int = 1000) -> Content:
    """All pages."""
    found: Content = {}
    after: str | None = ""
    while after is not None:
        page = replica.scan(Page("c", b"", after, limit, True, pin=pin))
        assert pin is None or page.applied == pin[0]
        for one in page.documents:
            assert one.id not in found and one.id > max(found, default="")
            assert len(one.vector) == 12
            found[one.id] = (json.loads(one.metadata or b"null"), one.vector, one.expires)
        assert page.reached is None or page.reached > after
        after = page.reached
    return found


def test_a_pin_sees_what_was_there_whatever_happens(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put([f"d{n}" for n in range(8)], [[n, 0, 0] for n in range(8)], [{"n": n} for n in range(8)]))
    shard.done(Patch("c", ["d0"], Change(set=[("early", b"1")])))
    shard.done(Patch("c", ["d7"], Change(expires=50)))
    pin, before = shard.pin(), seen(shard.replica, None)
    shard.done(put(["d1", "d9"], [[9, 9, 9]] * 2, [{"n": 99}] * 2))
    shard.done(Delete("c", ["d2"]))
    shard.done(Patch("c", ["d0", "d3"], Change(set=[("n", b"33")])))
    shard.done(UpdateVectors("c", ["d4"], floats([4, 4, 4])))
    shard.done(Patch("c", ["d5"], Change(expires=40)))
    shard.done(ChangeWhere("c", b'{"n": 6}', None))
    shard.done(Expire("c", 60, 100))
    now = seen(shard.replica, None)
    assert set(now) == {"d0", "d1", "d3", "d4", "d9"} and before["d7"][2] == 50
    for _ in range(2):
        assert seen(shard.replica, pin) == seen(shard.replica, pin, 1) == before
        assert seen(shard.replica, None) == now
        shard.purge()
        shard.reopened()
    shard.replica.verify()
    shard.replica.close()


def test_a_purge_takes_nothing_that_a_pin_sees_and_everything_else(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put(["a", "b", "c"], [[1, 0, 0]] * 3, [{"n": 1}] * 3))
    first, before = shard.pin(1), seen(shard.replica, None)
    shard.done(put(["a"], [[2, 0, 0]], [{"n": 2}]))
    shard.done(put(["x"], [[2, 0, 0]]), Delete("c", ["x"]))  # no pin ever sees it
    second, between = shard.pin(2), seen(shard.replica, None)
    shard.done(put(["a"], [[3, 0, 0]], [{"n": 3}]), Patch("c", ["b"], Change(set=[("n", b"3")])))
    shard.purge()
    assert shard.stored() == (3 + 2 + 1, 3 + 2, 3)
    assert (seen(shard.replica, first), seen(shard.replica, second)) == (before, between)
    assert shard.done(EndPins([first[0], 999])).count == 1
    shard.purge()
    assert shard.stored() == (3 + 2, 3 + 1, 2)
    with pytest.raises(ScanEnded, match="that is safe"):
        seen(shard.replica, first)
    assert seen(shard.replica, second) == between
    shard.done(EndPins([second[0]]))
    shard.purge()
    assert shard.stored() == (3, 3, 0)
    shard.replica.verify()
    shard.replica.close()


def test_what_is_kept_for_one_scan_does_not_keep_others_for_ever(tmp_path: Path) -> None:
    """Scans that overlap one after the other: what died before the oldest of them is given back."""
    shard = Shard(tmp_path)
    shard.done(put(["a"], [[0, 0, 0]]))
    last = shard.pin(1)
    for n in range(2, 40):
        shard.done(put(["a"], [[n, 0, 0]]))
        pin = shard.pin(n)
        shard.done(EndPins([last[0]]))
        last = pin
        shard.purge()
        assert shard.stored()[0] <= 3
    shard.replica.close()


def test_a_pin_has_one_token_and_what_is_open_is_bounded(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    first = shard.done(PinScan("c", 1, 0, 0, 2))
    again = shard.done(PinScan("c", 1, 0, 0, 2))  # its answer was lost
    assert again.version == first.version and again.existed and len(shard.replica.view.pins.open) == 1
    shard.done(PinScan("c", 2, 0, 0, 2))
    refused = shard.told(PinScan("c", 3, 0, 0, 2))
    assert isinstance(refused, Overloaded) and "pinned_scans_max" in refused.message
    assert isinstance(shard.told(PinScan("none", 3, 0, 0, 9)), CollectionNotFound)
    shard.done(CreateCollection(spec("other")))
    for wrong in (
        Page("c", b"", "", 9, False, pin=(first.version, 2)),
        Page("c", b"", "", 9, False, pin=(first.version + 1, 1)),
        Page("other", b"", "", 9, False, pin=(first.version, 1)),
    ):
        with pytest.raises(ScanEnded):
            shard.replica.scan(wrong)
    shard.done(DropCollection("c"))
    assert shard.replica.view.pins.open == ()
    shard.done(CreateCollection(spec()))
    with pytest.raises(ScanEnded, match="dropped"):
        seen(shard.replica, (first.version, 1))
    shard.purge()
    assert shard.stored() == (0, 0, 0)
    shard.replica.close()


def test_a_pin_sees_a_range_that_has_moved_since(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put(["a", "m", "z"], [[1, 0, 0]] * 3))
    everything, left = [(b"", None)], [(b"", b"m")]
    shard.done(PrepareMove(1, 1, False, [(b"m", None)], everything, RANGE, 2))
    owned = fingerprint(everything)
    assert isinstance(shard.told(PinScan("c", 6, fingerprint(left), 0, 9)), StaleEpoch)
    pin = (shard.done(PinScan("c", 7, owned, 0, 9)).version, 7)
    shard.done(Freeze(1, 0), Release(1, 0))
    assert set(seen(shard.replica, None)) == {"a"} and set(seen(shard.replica, pin)) == {"a", "m", "z"}
    assert isinstance(shard.told(PinScan("c", 8, owned, 0, 9)), StaleEpoch)
    other = (shard.done(PinScan("c", 7, fingerprint(left), 0, 9)).version, 7)  # of the same scan, by a newer map
    assert set(seen(shard.replica, other)) == {"a"}
    with pytest.raises(ScanEnded):
        seen(shard.replica, pin)
    pin = (shard.done(PinScan("c", 9, fingerprint(left), 0, 9)).version, 9)
    shard.done(Forget(1, 100))
    shard.purge()
    assert set(seen(shard.replica, pin)) == set(seen(shard.replica, other)) == {"a"}
    assert [one.index for one in shard.replica.view.pins.open] == [other[0], pin[0]]
    shard.replica.close()


def test_an_image_and_a_file_from_before_are_read(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "one")
    shard.done(put(["a", "b"], [[1, 0, 0]] * 2))
    pin, before = shard.pin(), seen(shard.replica, None)
    shard.done(Delete("c", ["a"]))
    (tmp_path / "image").mkdir()
    shard.replica.export_snapshot(str(tmp_path / "image"))
    other = open_replica(tmp_path / "other")
    other.install_snapshot(str(tmp_path / "image"))
    assert seen(other, pin) == before and set(seen(other, None)) == {"b"}
    other.close()
    shard.done(EndPins([pin[0]]))
    shard.purge()
    shard.replica.close()
    path = tmp_path / "one" / "state-1" / FILE_NAME
    with closing(connect(str(path))) as connection:
        connection.execute("DROP TABLE kept")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    shard.replica = open_replica(tmp_path / "one")
    pin = shard.pin()
    shard.done(Delete("c", ["b"]))
    assert set(seen(shard.replica, pin)) == {"b"}
    shard.replica.close()


@pytest.mark.parametrize("seed", range(6))
def test_pins_are_what_a_plain_model_says(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two replicas that apply in other batches and purge at other times; one is opened again now and then."""
    monkeypatch.setattr("needle.shard.reads.SCAN_LOOKS", 3)
    rng = random.Random(seed)
    shard = Shard(tmp_path / "one")
    other, applied = open_replica(tmp_path / "other", commit=rng.choice([1, 1024])), 0
    pins: dict[tuple[int, int], Content] = {}
    ids = [f"d{n}" for n in range(9)]
    for turn in range(150):
        name, n = rng.choice(ids), float(turn)
        draw = rng.random()
        if draw < 0.4:
            some = sorted(set(rng.choices(ids, k=3)))
            shard.done(put(some, [[n, 0, 0]] * len(some), [{"n": turn}] * len(some)))
        elif draw < 0.55:
            shard.done(Delete("c", [name]))
        elif draw < 0.75:
            shard.done(Patch("c", [name], Change(set=[("p", b"%d" % turn)])))
        elif draw < 0.8:
            shard.done(UpdateVectors("c", [name], floats([n, n, n])))
        elif draw < 0.9 and len(pins) < 5:
            pins[shard.pin(turn + 1)] = seen(shard.replica, None)
        elif pins:
            pin = rng.choice(sorted(pins))
            del pins[pin]
            shard.done(EndPins([pin[0]]))
        if rng.random() < 0.15:
            shard.purge()
        if rng.random() < 0.1:
            upto = rng.randint(applied, len(shard.log.entries))
            other.apply(shard.log.entries[applied:upto])
            applied = upto
            other.tidy(all_of_it=True)
        if rng.random() < 0.05:
            shard.reopened()
        for pin, content in pins.items():
            assert seen(shard.replica, pin, rng.randint(1, 4)) == content
    other.apply(shard.log.entries[applied:])
    while other.tidy(all_of_it=True):
        pass
    assert other.digest() == shard.replica.digest() and other.view.pins == shard.replica.view.pins
    for pin, content in pins.items():
        assert seen(other, pin, 2) == content
    other.close()
    shard.replica.close()


def test_a_page_looks_at_what_came_later_and_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came behind the pin is passed over in pages of bounded size, and each page says how far it came."""
    monkeypatch.setattr("needle.shard.reads.SCAN_LOOKS", 10)
    shard = Shard(tmp_path)
    shard.done(put(["a", "z"], [[1, 0, 0]] * 2))
    pin, before = shard.pin(), seen(shard.replica, None)
    shard.done(put([f"m{n:03}" for n in range(100)], [[1, 0, 0]] * 100))
    looks = 0

    def counted(document: Seen) -> Seen:
        nonlocal looks
        looks += 1
        return document

    store = shard.replica._store
    scan_pinned = store.scan_pinned
    monkeypatch.setattr(store, "scan_pinned", lambda *asked: map_closing(counted, scan_pinned(*asked)))
    page = shard.replica.scan(Page("c", b"", "", 5, False, pin=pin))
    assert [one.id for one in page.documents] == ["a"] and page.reached == "m008" and looks <= 11
    assert seen(shard.replica, pin) == before
    shard.replica.close()


def map_closing(change: Any, rows: Any) -> Any:
    with closing(rows):
        for row in rows:
            yield change(row)


def test_errors_say_that_a_scan_may_begin_anew() -> None:
    error: NeedleError = ScanEnded("over")
    assert not error.retryable and not error.of_the_node  # the same cursor fails again, wherever it is read
