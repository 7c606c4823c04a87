"""The demo, end to end in a process of its own: what it shows is true, and it leaves nothing behind however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from needle.cli.app import main
from needle.local import free_ports
from needle.local.kept import STATE_FILE


def needle() -> list[str]:
    """`needle`, which takes ports of this worker's range."""
    ours = f"ports.LOW, ports._ephemeral = {free_ports.LOW}, lambda: {free_ports._ephemeral()}"
    program = f"from needle.local import free_ports as ports; {ours}; from needle.cli import main; main()"
    return [sys.executable, "-c", program]


def running_in(directory: Path) -> list[int]:
    """Pids of nodes whose configuration is in `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(argument.startswith(f"{directory}/".encode()) for argument in arguments):
                found.append(int(entry.name))
    return found


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def started(directory: Path) -> bool:
    """Whether all three nodes of a demo in `directory` run."""
    try:
        return len(json.loads((directory / STATE_FILE).read_text())["pids"]) == 3 and len(running_in(directory)) == 3
    except (OSError, ValueError):
        return False


@pytest.fixture
def place(tmp_path: Path):
    directory = tmp_path / "demo"
    yield directory
    for pid in running_in(directory):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.alone
def test_the_demo_tells_the_truth_and_leaves_nothing_behind(place: Path) -> None:
    began = time.monotonic()
    argv = [*needle(), "demo", "--limit", "2000", "--json", "--dir", str(place)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - began < 90
    outcome = json.loads(ran.stdout)
    failover, proof = outcome["failover"], outcome["proof"]
    assert outcome["passages"] == 2000 and len(outcome["answers"]) == 4
    assert outcome["index_bytes"] > 2000 * 256 * 4  # the vectors alone
    assert all(len(answer["ids"]) == 3 and answer["strong_ms"] > 0 for answer in outcome["answers"])
    assert failover["killed"] != failover["new_leader"] and failover["term_after"] > failover["term_before"]
    known = outcome["known"]
    assert known["asked"] == 20 and known["first_by_words"] >= 15 and known["found_by_words"] >= 18
    assert known["found_by_both"] >= known["found_near"] >= known["first_near"]
    assert 0 < failover["failover_ms"] < 10_000
    assert proof["acknowledged"] == failover["acknowledged_before"] + failover["acknowledged_after"] >= 600
    assert proof["missing"] == 0 and proof["replicas"] == 3 and len(proof["digest"]) >= 32
    assert 0 <= proof["documents"] - 2000 - proof["acknowledged"] <= failover["unknown"]
    assert "kill -9 node-" in ran.stderr and "caught up" in ran.stderr
    assert running_in(place) == [] and not place.exists()


def test_a_kept_cluster_can_be_used_and_stopped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*needle(), "demo", "--keep", "--limit", "500", "--dir", str(place)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(running_in(place)) == 3 and f"needle demo --stop --dir {place}" in ran.stdout
    cluster = ",".join(json.loads((place / STATE_FILE).read_text())["addresses"].values())
    assert main(["search", "compress a file", "--json", "-k", "100", "--cluster", cluster]) == 0
    assert all(hit["metadata"]["text"] for hit in json.loads(capsys.readouterr().out))
    assert main(["demo", "--keep", "--dir", str(place)]) == 1
    assert "a demo is running in" in capsys.readouterr().err
    assert main(["demo", "--stop", "--dir", str(place)]) == 0
    stopped = capsys.readouterr().err
    assert stopped.startswith("stopped ") and all(f"node-{number}" in stopped for number in (1, 2, 3))
    assert running_in(place) == [] and not place.exists()
    assert main(["demo", "--stop", "--dir", str(place)]) == 0
    assert "no demo is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code", "after"),
    [
        (signal.SIGINT, 130, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
        pytest.param(signal.SIGINT, 130, "the leader, after", marks=pytest.mark.campaign),
    ],
)
def test_an_interrupted_demo_takes_its_nodes_along(place: Path, number: int, code: int, after: str) -> None:
    argv = [*needle(), "demo", "--limit", "500", "--dir", str(place)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        until(lambda: started(place))
        assert process.stdout is not None and process.stderr is not None
        while after and after not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        errors = process.stderr.read()
        assert process.wait(30) == code
    until(lambda: running_in(place) == [])
    assert "Traceback" not in errors


def test_ctrl_c_inside_code_made_from_a_string_exits_like_any_other(tmp_path: Path) -> None:
    """Such as the import of a dataclass: CPython ends a process by SIGINT for it, though it was caught."""
    lines = ["import needle.cli, needle.cli.app as module", "def app(*_, **__):", "    exec('raise KeyboardInterrupt')"]
    (tmp_path / "interrupted.py").write_text("\n".join([*lines, "module.app = app", "needle.cli.main()"]))
    argv = [sys.executable, "-m", "interrupted"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert ran.returncode == 130 and "interrupted" in ran.stderr


def test_a_demo_in_the_background_of_a_script_can_be_ended(place: Path) -> None:
    """By SIGTERM: a shell without job control has its background jobs ignore SIGINT."""
    argv = [*needle(), "demo", "--limit", "500", "--dir", str(place)]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    with process:
        until(lambda: started(place))
        process.terminate()
        assert process.wait(30) == 130
    until(lambda: running_in(place) == [])


def test_a_demo_that_fails_says_so_and_stops_its_nodes(place: Path) -> None:
    program = "import sys; sys.modules['wordllama'] = None; from needle.cli import main; main()"
    argv = [sys.executable, "-c", program, "demo", "--dir", str(place)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "error [invalid_config] embedding words needs the model" in ran.stderr
    assert f"their logs and data are in {place}" in ran.stderr
    assert running_in(place) == []


def test_a_directory_with_something_in_it_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.mkdir()
    (place / "precious").write_text("mine")
    assert main(["demo", "--dir", str(place)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["demo", "--stop", "--dir", str(place)]) == 1
    assert (place / "precious").read_text() == "mine"
