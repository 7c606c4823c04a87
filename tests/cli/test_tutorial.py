"""docs/tutorial.md, as it stands there, in a shell: only ports are others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from needle.local.free_ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
WRITTEN = [f"70{n:02}" for n in (1, 2, 3, 4)] + [f"71{n:02}" for n in (1, 2, 3)]


def script() -> str:
    """The commands of the page that are for a shell here; the demo's own one is run by test_demo."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 11 and "```\nmake demo\n```" in PAGE.read_text()
    text = "\n".join(blocks)
    for written, port in zip(WRITTEN, free_ports(len(WRITTEN)), strict=True):
        assert written in text
        text = text.replace(f":{written}", f":{port}")
    return text.replace('"$PWD/.venv/bin:$PATH"', f'"{Path(sys.executable).parent}:$PATH"')


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    environment = {**os.environ, "NEEDLE_DISK_RESERVE_BYTES": str(64 << 20)}
    shell = subprocess.Popen(
        ["bash", "-eu", "-c", script()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = shell.communicate(timeout=240)
    finally:
        # Its nodes, if it did not come to their end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, told
    made = tmp_path / "shop"

    def ids(name: str) -> list[str]:
        return [hit["id"] for hit in json.loads((made / name).read_text())["hits"]]

    assert (ids("near.json"), ids("dear.json"), ids("after.json")) == (
        ["apple", "cherry"],
        ["cherry"],
        ["apple", "cherry"],
    )
    assert "<html" in (made / "dashboard.html").read_text()
    assert "has stopped" in (made / "node-2.log").read_text()
    assert (made / "node-1.log").read_text().count("listens on") == 2
    assert (made / "deleted.txt").read_text().strip() == "3" and (made / "restored.txt").read_text().strip() == "4"
    assert json.loads((made / "lime.jsonl").read_text())["metadata"]["price"] == 4
