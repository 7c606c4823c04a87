"""A real cluster of three node processes for the tests of commands."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.calm import CALM
from harness.commands import Run
from needle.cli.app import main
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster

DIMENSIONS = 4


class Needle:
    """Runs commands against a cluster, in this process."""

    def __init__(self, cluster: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster = cluster
        self._capsys = capsys

    def run(self, *argv: str, expect: int = 0) -> str:
        """Standard output of a command, which must end with the exit code `expect`."""
        self._capsys.readouterr()
        code = main([*argv, "--cluster", self.cluster.cluster])
        captured = self._capsys.readouterr()
        assert code == expect, f"{argv} ended with {code}: {captured.out}{captured.err}"
        assert "Traceback" not in captured.err
        self.notes = captured.err
        return captured.out

    def json(self, *argv: str, expect: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*argv, "--json", expect=expect))

    def status(self) -> dict[str, Any]:
        """`needle status --json`, whatever its exit code."""
        self._capsys.readouterr()
        main(["status", "--json", "--cluster", self.cluster.cluster])
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def leader(self) -> str | None:
        """Who leads the only shard, by `needle status`."""
        shard = self.status()["shards"].get("0")
        return None if shard is None else shard["leader"]

    def conditions(self) -> list[str]:
        """Names and subjects of the conditions that hold."""
        return [f"{condition['name']}: {condition['subject']}" for condition in self.status()["conditions"]]

    def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Look again and again until it holds; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s; status {self.status()}"
            self.cluster.check_alive()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands in this process."""

    def command(*argv: str, expect: int | None = 0) -> str:
        capsys.readouterr()
        code = main([*argv])
        captured = capsys.readouterr()
        assert expect is None or code == expect, f"{argv}: {code} {captured.out}{captured.err}"
        assert "Traceback" not in captured.err
        return captured.out + captured.err

    return command


def healthy(needle: Needle) -> bool:
    status = needle.status()
    applied = {one["status"]["last_applied"] for one in status["replicas"] if one["status"]}
    return not status["conditions"] and needle.leader() is not None and len(applied) == 1


@pytest.fixture(scope="module")
def processes(module_path: Path) -> Iterator[ProcessCluster]:
    settings = {"dimensions": DIMENSIONS, "metric": "l2", "segments": {"seal_rows": 50}, **CALM}
    cluster = ProcessCluster(module_path, ports=free_ports(6), as_user=True, **settings)
    cluster.start_nodes()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def needle(processes: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> Needle:
    """Commands against a cluster whose three nodes are up and equal."""
    processes.check_alive()
    for node in processes.addresses.keys() - processes.pids().keys():
        processes.restart(node)
    needle = Needle(processes, capsys)
    needle.until(lambda: healthy(needle))
    return needle
