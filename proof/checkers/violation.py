"""How a checker says that a promise was broken."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise of the product was broken. `checker` names the promise, `message` the evidence, `key` the document."""

    def __init__(self, checker: str, message: str, key: str = "") -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker
        self.message = message
        self.key = key
