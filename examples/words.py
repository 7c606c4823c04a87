"""What all examples search in: the summaries of the modules of Python's standard library, and a small model for them.

The model (WordLlama, 256 dimensions) is inside its wheel: nothing is downloaded.
"""

from __future__ import annotations

import ast
import logging
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import wordllama

logging.getLogger().setLevel(logging.WARNING)  # importing the model has all loggers print what they note
DIMENSIONS = 256


class Summary(NamedTuple):
    """The first paragraph of a module's docstring. lines: how long its source is."""

    module: str
    text: str
    lines: int


def summaries() -> list[Summary]:
    """About a hundred and fifty, in the order of their names."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        source = path.read_text("utf-8", errors="replace")
        text = ast.get_docstring(ast.parse(source))
        if text:
            found.append(Summary(path.stem, " ".join(text.split("\n\n")[0].split()), source.count("\n")))
    return found


class Words:
    """Texts to unit vectors."""

    def __init__(self) -> None:
        package = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=package, disable_download=True)

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 of shape (len(texts), 256)."""
        vectors = np.asarray(self._model.embed(texts), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
