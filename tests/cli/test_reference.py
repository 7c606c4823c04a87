"""Nothing undocumented: commands, options, settings, error codes, and words in the documents that must exist."""

import re
import tomllib
from pathlib import Path

import pytest

from needle.base.config import SETTINGS
from needle.base.errors import by_code
from needle.cli.app import main
from needle.cli.common import ADVICE
from needle.cli.reference import commands, example, render, with_moves, with_settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ALL = list(commands())


def table_rows(path: Path) -> set[str]:
    """What stands in backquotes in the first column of a document's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_command_has_help_an_example_and_documented_options(name: str, command) -> None:
    assert command.help and command.help.strip().endswith((".", ")")), f"{name} has no help"
    assert example(command).startswith(name), f"{name} has no example of itself"
    undocumented = [p.name for p in command.params if p.name != "help" and not p.help]
    assert not undocumented, f"{name}: no help for {undocumented}"


def test_the_expected_commands_are_there() -> None:
    names = {name for name, _ in ALL}
    wanted = "serve demo status search insert get delete step-down force-election leader"
    assert {f"needle {name}" for name in wanted.split()} <= names
    assert {"needle maintenance enter", "needle maintenance exit", "needle collections create"} <= names


def test_the_reference_is_up_to_date() -> None:
    assert (DOCS / "cli.md").read_text() == render(), "run: python -m needle.cli.reference > docs/cli.md"


@pytest.mark.parametrize("name", [name for name, _ in ALL])
def test_help_shows_the_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split()[1:], "--help"]) == 0
    assert "Example: needle" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, _ in ALL])
def test_arguments_are_called_by_one_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It was "`None`" in the document, and [[NODE]...]... in a command's help."""
    main([*name.split()[1:], "--help"])
    usage = capsys.readouterr().out.split("Usage:")[1].split("\n\n")[0]
    assert "[[" not in usage and "..." + "]" not in usage and "...}" not in usage
    assert "`None`" not in render()


def test_documents_name_only_commands_that_exist() -> None:
    names = {name for name, _ in ALL}
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for words in re.findall(r"(?:`|^ *(?:\.venv/bin/)?)needle ([a-z][a-z -]*)", path.read_text(), re.MULTILINE):
            parts = words.split()
            known = f"needle {parts[0]}" in names or f"needle {' '.join(parts[:2])}" in names
            assert known, f"{path.name} names `needle {words}`"


def test_the_table_of_settings_is_up_to_date() -> None:
    text = (DOCS / "operations.md").read_text()
    assert text == with_settings(text), "run: python -m needle.cli.reference docs/operations.md"
    assert set(SETTINGS) <= table_rows(DOCS / "operations.md")


def test_the_diagram_of_a_move_is_up_to_date() -> None:
    text = (DOCS / "architecture.md").read_text()
    assert "```mermaid\nstateDiagram" in text
    assert text == with_moves(text), "run: python -m needle.cli.reference docs/architecture.md"


def test_every_error_code_is_documented_and_advice_is_for_real_codes() -> None:
    codes = set(by_code())
    assert codes <= table_rows(DOCS / "troubleshooting.md")
    assert set(ADVICE) <= codes


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_glossary_is_sorted() -> None:
    words = re.findall(r"^\| ([a-z][a-z -]+) \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert len(words) > 30 and words == sorted(words)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    adr = (DOCS / "adr" / "0006-dependencies.md").read_text()
    of_nodes = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    needed = {re.split(r"[<>=\[]", requirement)[0] for requirement in of_nodes}
    assert needed == set(re.findall(r"^\| ([a-z-]+) \|", adr, re.MULTILINE)) - {"package"}
    optional = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    assert [name for name in (re.split(r"[<>=\[]", text)[0] for text in optional) if name not in adr] == []
