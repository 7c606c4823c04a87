"""Wrong usage is exit code 2 with a hint, a wrong value exit code 1 with one line; never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import needle
from needle import connecting
from needle.base.errors import NotLeader
from needle.cli import common, serving
from needle.cli.app import main
from needle.cli.doctor_command import _line
from needle.cli.expected import rates_in_words
from needle.client.embedding import WORDLLAMA
from needle.client.fitness import Finding
from needle.routing.copy_rates import CopyRates
from needle.routing.planned_moves import MoveRange, MoveReplicas


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["serach"], "Did you mean 'search'?"),
        (["maintenance", "entr", "x"], "Did you mean 'enter'?"),
        (["search"], "either words, --vector FILE, or --like ID; or --keywords WORDS"),
        (["search", "words", "--vector", "v.npy"], "either words, --vector FILE, or --like ID; or --keywords WORDS"),
        (["search", "words", "--keywords", "a", "--group-by", "n"], "--group-by does not go with a search by several"),
        (["search", "--like", "a", "--keywords", "a", "--weights", "1"], "--weights are 2 numbers"),
        (["search", "--like", "a", "--keywords", "a", "--weights", "1,x"], "such as 1,1, not 1,x"),
        (["search", "--sparse", "[1"], "--sparse is not JSON"),
        (["search", "--sparse", "[1]"], "--sparse must be an object such as"),
        (["search", "--sparse", "[" * 100_000], "--sparse is not JSON"),
        (["patch", "a", "--set", "sparse=" + "[" * 100_000], "the value of 'sparse' is JSON that is nested too deep"),
        (["search", "--like", "a", "--sparse", "{}", "--keywords", "a", "--weights", "1,2"], "--weights are 3 numbers"),
        (["search", "--keywords", "a", "--weights", "1,2"], "--weights are those of a search by several"),
        (["search", "words", "--mode", "lazy"], "'strong', 'leased', 'eventual'"),
        (["search", "words", "--filter", "{"], "--filter is not JSON"),
        (["search", "words", "--filter", "[]"], "--filter must be an object"),
        (["search", "words", "--like", "a"], "--like ID"),
        (["search", "words", "-k", "0"], "-k"),
        (["scan", "--slice", "4/4"], "--slice is I/N"),
        (["export", "x.jsonl", "--slice", "half"], "--slice is I/N"),
        (["insert", "nowhere.jsonl"], "does not exist"),
        (["get"], "Missing argument"),
        (["collections", "create", "x"], "--dimensions"),
        (["demo", "--nodes", "2"], "--nodes"),
        (["status", "--cluter", "x"], "--cluster"),
    ],
)
def test_usage_errors(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert hint in "\n".join(lines(capsys))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["status", "--cluster", "localhost"], "[invalid_config] --cluster = 'localhost' is not allowed"),
        (["status", "--cluster", ""], "[invalid_config] --cluster = ''"),
        (["status", "--every", "0"], "[invalid_config] --every = 0"),
        (["search", "--vector", "nowhere.npy"], "[invalid_argument] nowhere.npy: no such file"),
        (["serve"], "[invalid_config] the setting node_id is required"),
        (["serve", "--node-id", "a", "--data-dir", "d"], "the setting cluster_nodes, or listen of a node"),
        (
            ["serve", "--node-id", "a", "--cluster-node", "a=h:1", "--data-dir", "d", "--heartbeat-interval", "5"],
            "election_timeout = 1.0 is not allowed: at least twice heartbeat_interval, which is 5",
        ),
        (["cluster", "create", "a=h"], "NODE = 'h' is not allowed"),
        (["search", "--vector", "."], "[invalid_argument] .: cannot be read: Is a directory"),
        (["serve", "--config", "nowhere.toml"], "[invalid_config] config = 'nowhere.toml' cannot be read"),
        (["serve", "--node-id", "a", "--cluster-node", "a=h:1", "--data-dir", "d", "--metric", "x"], "metric = 'x'"),
        (["leader", "--cluster", "127.0.0.1:1"], "[connection_lost] no node of the cluster can be reached"),
        (["get", "a", "--cluster", "127.0.0.1:1,127.0.0.1:2"], "127.0.0.1:2"),
        (["status", "--cluster", "http://localhost:5001"], "without a scheme"),
    ],
)
def test_errors_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 1
    (line,) = lines(capsys)
    assert line.startswith("error [") and message in line


def test_an_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    common.show_error(NotLeader("node-1 does not lead [bold]"))
    assert lines(capsys) == [f"error [not_leader] node-1 does not lead [bold] - {common.ADVICE['not_leader']}"]


def test_unreachable_nodes_are_a_condition_not_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at once: no time is spent on looking for a cluster whose nodes all refuse connections."""
    monkeypatch.setattr(connecting, "find_cluster", None)
    assert main(["status", "--json", "--cluster", "127.0.0.1:1,127.0.0.1:2"]) == 1
    captured = capsys.readouterr()
    status = json.loads(captured.out)
    assert not status["healthy"] and status["replicas"] == []
    names = [condition["name"] for condition in status["conditions"]]
    assert names == ["no leader", "node unreachable", "node unreachable"]
    assert captured.err == ""


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wordllama", None)
    monkeypatch.setattr(WORDLLAMA, "_model", None)
    assert main(["search", "words"]) == 1
    (line,) = lines(capsys)
    assert "[invalid_config]" in line and "pip install 'needle-vdb[demo]'" in line and "--vector" in line


def test_embedding_gives_unit_vectors_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from needle.base.errors import InvalidArgument

    def refuse(*args: object) -> None:
        raise AssertionError("the model must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(WORDLLAMA, "_model", None)
    vectors = WORDLLAMA.embed(["compress a file", "zip archive", "the colour of the sky"])
    assert vectors.shape == (3, WORDLLAMA.dimensions) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    with pytest.raises(InvalidArgument, match="no word"):
        WORDLLAMA.embed(["fine", ""])
    with pytest.raises(InvalidArgument, match="cut it into passages"):
        WORDLLAMA.embed(["fine", "word " * 10_000])


def test_json_holds_arrays(tmp_path: Path) -> None:
    assert common.as_json({"v": np.array([1, 2], dtype=np.float32), "n": np.float32(0.5)}) == {"v": [1, 2], "n": 0.5}
    assert common.brief({"a": "x" * 50}, 20) == '{"a": "xxxxxxxxxx...'


def test_what_documents_say_is_no_command_for_the_terminal() -> None:
    hostile = "\x1b[2J\x9b2J\x7f é [red]"
    for shown in (common.visible(hostile), common.brief(hostile, 80)):
        assert shown == "\\u001b[2J\\u009b2J\\u007f é [red]"
    assert "\x9b" not in common.brief({"a": hostile}, 80)


def test_ctrl_c_while_modules_are_still_loaded_is_no_traceback() -> None:
    """Whatever comes before the command itself ended with one, and not with exit code 130."""
    code = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "needle.cli.app":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from needle.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (130, "interrupted")


def test_the_doctor_says_what_is_allowed_only_where_there_is_a_bound() -> None:
    """Of other alerts it said "allowed: it does not hold"."""
    told = {"severity": "warning", "name": "NeedleUnderReplicated", "subject": "under-replicated", "measured": "2 of 3"}
    without = Finding(**told, allowed="", action="start it", runbook="docs/alerts.md")
    assert str(_line(without)) == (
        "WARNING NeedleUnderReplicated: under-replicated: 2 of 3 - start it (docs/alerts.md)"
    )
    assert "2 of 3; allowed: 3 - start it" in str(_line(msgspec.structs.replace(without, allowed="3")))


def test_how_long_a_plan_takes_is_said_with_the_rates_that_it_assumes() -> None:
    replica = MoveReplicas(group=2, before=("a",), after=("a", "b"), documents=9, bytes=9)
    moved = MoveRange(source=0, target=1, ranges=((b"", None),), documents=9, bytes=9)
    said = rates_in_words([replica], CopyRates())
    assert said.startswith(", if it copies 28.6 MiB/s of a replica: that was measured elsewhere")
    said = rates_in_words([replica, moved], CopyRates(replica_bytes=2048.0))
    assert said.startswith(
        ", by what the latest moves copied between pauses: 2.0 KiB/s of a replica, if it copies 4000 "
    )
    assert rates_in_words([], CopyRates()) == ""
    shown = rates_in_words([moved], CopyRates(range_documents=7.0))
    assert shown.endswith("between pauses: 7 documents/s of key ranges")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"needle {needle.__version__}\n"


def test_a_command_that_runs_no_node_loads_none() -> None:
    heavy = "faiss", "uvloop", "needle.server.node", "needle.multiraft.engine", "needle.shard.state_machine"
    code = f"import sys, needle.cli.app; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "given",
    [["--help"], ["--bogus"], ["--config"], ["--config", ""], ["--config", "--bogus"], ["--config", "/nonexistent"]],
    ids=str,
)
def test_serve_by_itself_is_the_command_among_all(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["needle", "serve", *given])
    code, alone = serving.main(), capsys.readouterr()
    assert (main(["serve", *given]), capsys.readouterr()) == (code, alone)
    assert alone.out or alone.err


def test_a_node_loads_no_other_commands() -> None:
    code = "import atexit, sys; sys.argv = ['needle', 'serve', '--help']; from needle.cli import main; "
    code += "atexit.register(lambda: print('needle.cli.app' in sys.modules)); main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--election-timeout" in done.stdout and done.stdout.endswith("False\n")


@pytest.mark.parametrize(("name", "kind"), [("a.json", "JSON"), ("a.toml", "TOML")])
def test_a_file_of_settings_that_is_nested_too_deep_is_refused(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with a traceback."""
    (tmp_path / name).write_text(("" if kind == "JSON" else "a = ") + "[" * 100_000)
    assert main(["serve", "--config", str(tmp_path / name)]) == 1
    (line,) = lines(capsys)
    assert f"is not {kind}: " in line


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_node_that_is_started_by_a_file_loads_nothing_to_show_things_with(tmp_path: Path, by_variable: bool) -> None:
    """Every node held typer and pydantic, some 10 MB, for options that it did not have."""
    path = tmp_path / "a.toml"
    path.write_text(f'node_id = "a"\ndata_dir = "{tmp_path}/data"\ncluster_nodes = ["a=127.0.0.1:5999"]\n')
    code = "import atexit, sys; from needle.cli import main; from needle.server.process import main as node; "
    code += "atexit.register(lambda: print({'typer', 'pydantic', 'click'} & sys.modules.keys())); "
    code += "node.serve = lambda *_, **__: sys.exit(3); main()"
    program = [sys.executable, "-c", code, "serve", *([] if by_variable else ["--config", str(path)])]
    environment = os.environ | ({"NEEDLE_CONFIG": str(path)} if by_variable else {})
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "set()\n", "")
