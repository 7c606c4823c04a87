"""What the system says of a process and its machine."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from needle.server.machine import computer
from needle.server.machine.computer import SystemComputer, timed_writes


def test_this_machine_is_known() -> None:
    facts = SystemComputer().facts()
    assert 0 < facts.files < facts.files_max and 0 < facts.maps < facts.maps_max
    assert 0 < facts.memory_available <= facts.memory and 0 < facts.resident < facts.memory
    assert facts.cpus and facts.cpu_seconds > 0 and facts.machine


def test_what_is_looked_at_each_second_is_cheap() -> None:
    facts = SystemComputer().facts(brief=True)
    assert facts.resident and facts.cpu_seconds and facts.memory
    assert (facts.files, facts.maps, facts.features) == (0, 0, "")


def test_a_cgroup_that_has_less_than_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, around = tmp_path / "system.slice" / "needle.service", tmp_path / "system.slice"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("1:cpu:/x\n0::/system.slice/needle.service\n")
    bound, used = own / "memory.max", own / "memory.current"
    monkeypatch.setattr(computer, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(computer, "OWN_CGROUPS", str(tmp_path / "self"))
    whole = computer.memory()
    assert whole[0] > 1 << 28, "without a cgroup the machine counts"
    bound.write_text("max\n")
    assert computer.memory()[0] == whole[0]
    bound.write_text(f"{1 << 26}\n")
    used.write_text(f"{1 << 25}\n")
    assert computer.memory() == (1 << 26, 1 << 25)
    used.write_text(f"{1 << 27}\n")
    assert computer.memory() == (1 << 26, 0)
    (around / "memory.max").write_text(f"{1 << 24}\n")
    (around / "memory.current").write_text(f"{1 << 23}\n")
    assert computer.memory()[0] == 1 << 24, "of those around it the one counts that has least"
    assert computer.process_memory()().total == 1 << 24


def test_a_cgroup_of_the_first_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "memory" / "docker" / "one"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("4:cpu,cpuacct:/docker/one\n3:memory:/docker/one\n")
    (own / "memory.limit_in_bytes").write_text(f"{1 << 26}\n")
    (own / "memory.usage_in_bytes").write_text(f"{1 << 25}\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    monkeypatch.setattr(computer, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(computer, "OWN_CGROUPS", str(tmp_path / "self"))
    assert computer.memory() == (1 << 26, 1 << 25)


def test_memory_of_its_own_counts_and_mapped_files_do_not(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 64 << 20
    path.write_bytes(bytes(size))
    before = computer.own_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert computer.own_bytes() - before < size // 2 and computer.resident_bytes() > size
    held = bytearray(b"1") * size
    assert computer.own_bytes() - before > size // 2
    del held


def test_memory_that_is_swapped_out_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "/proc/self/statm": b"9000 5000 2000 1 0 4000 0\n",
        "/proc/self/status": b"Name:\tneedle\nVmRSS:\t   20000 kB\nVmSwap:\t   700 kB\nThreads:\t4\n",
    }
    monkeypatch.setattr(computer, "_told", lambda path: told[path])
    held = 3000 * os.sysconf("SC_PAGE_SIZE")
    assert computer.own_bytes() == held + 700 * 1024
    told["/proc/self/status"] = b"Name:\tneedle\n"  # of a system without swap
    assert computer.own_bytes() == held


def test_durable_writes_are_bounded_and_leave_nothing(tmp_path: Path) -> None:
    found = timed_writes(str(tmp_path), 300, 60.0)
    assert len(found) == 300 and found == sorted(found) and found[0] > 0
    assert timed_writes(str(tmp_path), 10**9, 0.0) == []
    start = time.monotonic()
    assert timed_writes(str(tmp_path), 10**9, 0.05) and time.monotonic() - start < 30
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        timed_writes(str(tmp_path / "gone"), 1, 1.0)
