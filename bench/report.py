"""What a benchmark run says: a table of measured values, ratios and goals, and the same as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table


class Report:
    """Rows in the order they were measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def row(self, name: str, needle: str, other: str = "") -> None:
        """A measurement of Needle and what it stands beside."""
        self.rows.append({"name": name, "needle": needle, "other": other, "ratio": None, "goal": "", "ok": None})

    def ratio(self, ratio: float | None, goal: str, *, ok: bool | None) -> None:
        """The ratio of the last row, its goal, and whether it was reached (None: nothing to compare with)."""
        self.rows[-1].update(ratio=None if ratio is None else round(ratio, 3), goal=goal, ok=ok)

    def print(self, *, as_json: bool) -> None:
        if as_json:
            print(json.dumps(self.rows, indent=2))
            return
        table = Table("measured", "Needle", "beside", "ratio", "goal", "")
        for row in self.rows:
            mark = {True: "[green]reached", False: "[red]missed", None: ""}[row["ok"]]  # type: ignore[index]
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            table.add_row(str(row["name"]), str(row["needle"]), str(row["other"]), ratio, str(row["goal"]), mark)
        Console(width=160).print(table)
