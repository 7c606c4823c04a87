"""How far a restore is, as the command line shows it."""

from __future__ import annotations

from rich.progress import Progress


def _percent(done: int, of: int) -> str:
    done = min(done, of) if of else done  # what is looked through again is counted again
    return f"{done} of {of} documents ({100 * done // max(1, of)} %)"


class RestoreProgress:
    """Shows how many documents were written so far, and then how many are searched by index files."""

    def __init__(self, shown: Progress) -> None:
        self._shown, self._task = shown, shown.add_task("0 documents")
        self._total = self._written = 0

    def say(self, text: str) -> None:
        self._shown.update(self._task, description=text)

    def total(self, documents: int) -> None:
        self._total = documents

    def written(self, documents: int) -> None:
        self._written += documents
        self.say(f"written: {_percent(self._written, self._total)}")

    def indexed(self, searched: int, documents: int) -> None:
        self.say(f"indexed: {_percent(searched, documents)}")
