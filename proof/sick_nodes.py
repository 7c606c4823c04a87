"""Node processes of which something is not as it should be: a module that Python imports at their start changes it."""

from __future__ import annotations

from pathlib import Path

from needle.local.node_process import NodeProcess

OTHER_SUMS = """
import msgspec
import needle.protocol.commands as commands
_decode = commands.decode_logged
def _other(data):
    found = _decode(data)
    if not isinstance(found, commands.Insert):
        return found
    return msgspec.structs.replace(found, metadata=[b'{"other":1}'] * len(found.ids))
commands.decode_logged = _other
"""
"""Executes inserts in another way than the other replicas: a bug that must never be."""


def fall_ill(node: NodeProcess, directory: Path, how: str) -> None:
    """From its next start on."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(how, encoding="utf-8")
    node.source = directory
