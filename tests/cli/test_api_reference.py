"""Public names: listed once, described, and the same for the interpreter, for type checkers and in docs/api.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import needle
from needle.base.errors import by_code
from needle.cli import api_reference
from needle.cli.api_reference import entries, first_paragraph, members
from needle.client.scanning import Scan

ENTRIES = entries()


def test_the_page_and_the_stub_are_up_to_date() -> None:
    again = "run: python -m needle.cli.api_reference"
    assert api_reference.PAGE.read_text() == api_reference.render(), again
    assert api_reference.STUB.read_text() == api_reference.stub(), again


def test_every_error_is_a_public_name() -> None:
    errors = {kind.__name__ for kind in by_code().values()}
    listed = needle._PUBLIC["needle.base.errors"].split()
    assert sorted(listed) == sorted(errors)
    assert len(needle.__all__) == len(set(needle.__all__))


def test_every_public_name_is_there_and_no_other() -> None:
    for name in needle.__all__:
        assert getattr(needle, name).__name__ == name
        assert name in dir(needle)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = needle.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "thing"), [(name, thing) for _, name, thing in ENTRIES])
def test_every_public_name_and_method_says_what_it_is(name: str, thing: Any) -> None:
    assert first_paragraph(thing).endswith((".", ":")), f"{name} has no docstring"
    if isinstance(thing, type):
        silent = [f"{name}.{each}" for each, member in members(thing) if not first_paragraph(member)]
        assert not silent, "without a docstring"


def test_what_a_public_method_returns_is_described() -> None:
    described, missing = {thing for _, _, thing in ENTRIES}, set()
    for _, name, thing in ENTRIES:
        for each, member in members(thing) if isinstance(thing, type) and thing is not needle.SyncClient else ():
            if thing in api_reference.RESULTS and thing is not Scan:
                continue
            waiting = [get_type_hints(member.fget if isinstance(member, property) else member).get("return")]
            while waiting:
                waiting += get_args(kind := waiting.pop())
                ours = isinstance(kind, type) and kind.__module__.startswith("needle") and get_origin(kind) is None
                if ours and kind not in described:
                    missing.add(f"{name}.{each}: {kind.__name__}")
    of_needle_itself = {
        "CollectionSpec.form: VectorForm", "ShardManager.local_nodes: Node", "ShardConfig.shown: Credentials"
    }  # fmt: skip
    assert missing == of_needle_itself


@pytest.mark.campaign
def test_type_checkers_know_the_names_and_their_types(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from datetime import timedelta\n"
        "import needle\n"
        "class Table:\n"
        "    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...\n"
        "from needle.distributed import DistributedCluster, RaftCluster, RebalanceHandle\n"
        "async def work(client: needle.Client, raft: RaftCluster, cluster: DistributedCluster) -> None:\n"
        "    reveal_type(await client.get('a'))\n"
        "    reveal_type(await raft.get(['a']))\n"
        "    reveal_type(await cluster.insert_batch([]))\n"
        "    reveal_type(await raft.insert_batch([]))\n"
        "async def told(client: needle.Client, table: Table, rounds: RebalanceHandle) -> None:\n"
        "    await client.insert_batch(table, timeout=timedelta(seconds=5))\n"
        "    await rounds.wait(timedelta(seconds=5))\n"
        "def blocking(client: needle.SyncClient) -> None:\n"
        "    reveal_type(client.search([1.0], filter={'a': 1}))\n"
        "    reveal_type(needle.LostState.code)\n"
        "    client.insert(1, [1.0])\n"
        "    needle.Missing\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "", str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    said = [line.split(": ", 2)[2] for line in run.stdout.splitlines()]
    assert said[:6] == [
        'Revealed type is "needle.base.model.Document | None"',
        'Revealed type is "list[needle.base.model.Document]"',
        'Revealed type is "dict[str, needle.base.model.WriteResult | needle.base.errors.NeedleError]"',
        'Revealed type is "list[needle.base.model.WriteResult]"',
        'Revealed type is "needle.client.document_calls.Hits"',
        'Revealed type is "str"',
    ]
    assert "incompatible type" in said[6]
    assert "no attribute" in said[7]
