"""`needle rolling-restart` with a command of the operator's own: here it asks this process to restart the node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path


def test_an_operators_command_restarts_every_node(needle, tmp_path: Path) -> None:
    nodes = sorted(needle.cluster.addresses)
    before = needle.cluster.pids()
    command = f"touch {tmp_path}/asked-{{node}}; until [ -e {tmp_path}/done-{{node}} ]; do sleep 0.05; done"
    planned = needle.json("rolling-restart", "--dry-run", "--command", command)
    assert sorted(one["node"] for one in planned) == nodes
    assert all(f"asked-{one['node']};" in one["command"] for one in planned)
    assert all(one["seconds"] > 0 for one in planned)
    assert "takes about 18 s" in needle.run("rolling-restart", "--dry-run")
    assert needle.cluster.pids() == before
    restarted = []
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(needle.json, "rolling-restart", "--command", command, "--timeout", "60")
        while not told.done():  # in this thread: with the one that started it a node ends, too
            for name in nodes:
                if name not in restarted and (tmp_path / f"asked-{name}").exists():
                    restarted.append(name)
                    needle.cluster.terminate(name)
                    needle.cluster.restart(name)
                    (tmp_path / f"done-{name}").touch()
            wait([told], 0.05)
        assert [one["node"] for one in told.result()["restarted"]] == restarted
    assert sorted(restarted) == nodes
    assert not set(before.values()) & set(needle.cluster.pids().values())


def test_it_is_refused_when_it_cannot_succeed(needle) -> None:
    needle.run("rolling-restart", expect=1)
    assert "--command" in needle.notes
    needle.run("rolling-restart", "--command", "systemctl restart needle", expect=1)
    assert "{node}" in needle.notes
    needle.run("rolling-restart", "node-9", "--dry-run", expect=1)
    assert "node-9" in needle.notes
    needle.run("rolling-restart", "node-1", "--command", "exit 3; : {node}", "--timeout", "20", expect=1)
    assert "has ended with 3" in needle.notes and "node-1 is in maintenance" in needle.notes
    needle.run("rolling-restart", "--dry-run", expect=1)
    assert "node-1 is in maintenance" in needle.notes
    needle.run("maintenance", "exit", "node-1")
