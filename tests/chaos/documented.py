"""Which fields of recorded lines docs/history-format.md does not tell of."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "history-format.md"


def undocumented(lines: Iterable[str]) -> set[str]:
    """Names of fields, and types of lines."""
    known = set(re.findall(r"`([a-z_]+)`", DOCUMENT.read_text()))
    events = [json.loads(line) for line in lines]
    return {name for event in events for name in (*event, event["type"])} - known
