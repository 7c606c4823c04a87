"""`needle serve` with any options, without the other commands: what these load would take 4 MB while the node runs."""

from __future__ import annotations

import sys

import typer

from needle.cli import serve_command

app = typer.Typer(
    name="needle", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command("serve", epilog=f"Example: {serve_command.EXAMPLE}")(serve_command.serve)


@app.callback()
def _needle() -> None:
    """With it, the only command has a name."""


def serve() -> None:
    """As the command line says. Raises SystemExit for wrong usage, and once a node has ended."""
    app(sys.argv[1:], prog_name="needle")
