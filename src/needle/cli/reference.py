"""Documents made from the program: `python -m needle.cli.reference > docs/cli.md` from the commands; the table of
settings and the diagram of a move with `python -m needle.cli.reference docs/operations.md docs/architecture.md`, which
puts them into these files.

A test compares the files with this, and fails for a command or option without help or a command without an example.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from needle.base.config import SETTINGS
from needle.cli.app import app
from needle.protocol.move_commands import NEXT, STEPS

HEAD = """# Commands

Made from the commands by `python -m needle.cli.reference > docs/cli.md`; do not edit.

Every command that talks to a cluster takes `--cluster host:port,...` (or the variable `NEEDLE_CLUSTER`); any one
reachable node is enough. Where all nodes refuse connections a command says so at once; calls of the library wait, each
until its timeout, for a cluster that may be restarting. `--json` prints one JSON document on standard output; messages
and progress go to standard error. Exit codes: 0 done, 1 error (one line on standard error, with its code in brackets),
2 wrong usage, 130 interrupted.
"""


def commands(command: Any = None, path: str = "needle") -> Iterator[tuple[str, Any]]:
    """Every command as (full name, command), groups before what is in them."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


def example(command: Any) -> str:
    """The command line of a command's example; "" if it has none."""
    epilog = str(command.epilog or "")
    return epilog.removeprefix("Example: ") if epilog.startswith("Example: ") else ""


def _option_line(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar}{'...' if parameter.nargs != 1 else ''}`"
    facts = ["required"] if parameter.required else []
    if parameter.default not in (None, False, [], ()) and not parameter.required:
        facts.append(f"default `{getattr(parameter.default, 'value', parameter.default)}`")
    if parameter.envvar:
        facts.append(f"variable `{parameter.envvar}`")
    return f"- {names}: {parameter.help}" + (f" ({', '.join(facts)})" if facts else "")


def render() -> str:
    """The whole reference as Markdown."""
    parts = [HEAD]
    for name, command in commands():
        parts.append(f"## {name}\n\n{' '.join(str(command.help).split())}\n\n```\n{example(command)}\n```\n")
        options = [_option_line(p) for p in command.params if p.name != "help"]
        if options:
            parts.append("\n".join(options) + "\n")
    return "\n".join(parts)


def with_settings(text: str) -> str:
    """A document with its table of settings made again."""
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS.values():
        usual = "--" + setting.path.replace(".", "-").replace("_", "-")
        option = "" if setting.option.partition("/")[0] == usual else f" Option `{setting.option}`."
        meaning = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", setting.description.replace(" in docs/operations.md", ""))
        lines.append(f"| `{setting.path}` | {setting.shown} | {setting.allowed} | {meaning}{option} |")
    table = "\n".join(lines) + "\n"
    return re.sub(r"^\| setting \|.*?\n(?=\n)", lambda _: table, text, count=1, flags=re.DOTALL | re.MULTILINE)


def with_moves(text: str) -> str:
    """A document with its state diagram of a move made again."""
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(STEPS))}: catalog StartMove"]
    for state, steps in STEPS.items():
        lines.append(f"    {state}: {state} - {', '.join(f'{side} {command.__name__}' for side, command in steps)}")
        lines += [f"    {state} --> {after or '[*]'}: catalog {command}" for command, after in NEXT[state]]
    drawn = "```mermaid\n" + "\n".join(lines) + "\n```\n"
    return re.sub(r"^```mermaid\nstateDiagram.*?^```\n", lambda _: drawn, text, count=1, flags=re.DOTALL | re.MULTILINE)


def main(arguments: list[str]) -> None:
    """Write docs/cli.md to standard output, or settings and diagrams into the documents named."""
    if not arguments:
        sys.stdout.write(render())
    for document in map(Path, arguments):
        document.write_text(with_moves(with_settings(document.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
