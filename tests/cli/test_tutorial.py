"""docs/tutorial.md, as it stands there, in a shell: only ports are others. Its chapter on Prometheus needs what Debian
installs: `make alerts` runs that one (proof/alerts/walk.py)."""

from __future__ import annotations

import json
from pathlib import Path

from proof.tutorial import PAGE, PORTS, PROMETHEUS, chapters, run


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    text, blocks = PAGE.read_text(), chapters()
    assert sum(map(len, blocks.values())) == 14 and len(blocks[PROMETHEUS]) == 3 and "```\nmake demo\n```" in text
    assert all(f":{port}" in text for port in PORTS)
    made = run(tmp_path, blocks.keys() - {PROMETHEUS}, 240)

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
