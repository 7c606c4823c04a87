"""How a checker says that a promise was broken."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise of the product was broken. `checker` names the promise, the message the evidence."""

    def __init__(self, checker: str, message: str) -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker
        self.message = message
