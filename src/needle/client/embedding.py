"""Texts to vectors: what makes them, and whether a collection takes what it makes.

WordLlama is the model that needs nothing else: it is inside its own wheel, so there is no download and no network. This
is the only importer of wordllama, an optional extra; the import happens with the first text.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from needle.base.errors import ConfigError, InvalidArgument, invalid
from needle.base.model import CollectionSpec
from needle.base.plain import refused, text
from needle.base.schema import refuse
from needle.client.values import Vectors, as_array

TEXT_BYTES_MAX: Final = 32 * 1024
"""Of one text for WordLlama, which may make a token of each byte, and holds 2 KiB for each token."""
PADDED_BYTES: Final = TEXT_BYTES_MAX
"""Of the texts that WordLlama works on at once, each taken to be as long as the longest."""
MISSING: Final = (
    "embedding words needs the model that the demo uses: pip install 'needle-vdb[demo]' (or give a vector; "
    "`needle search` takes one with --vector FILE)"
)
EMBEDDER: Final = "an object with name (a text), dimensions (a number) and embed(texts), or None"


class Embedder(Protocol):
    """What makes vectors of texts. name: of the model, as collections name it. dimensions: of its vectors. Equal names
    must mean equal vectors of equal texts."""

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    def embed(self, texts: list[str], /) -> Any:
        """Vectors of shape (len(texts), dimensions), anything numpy makes a float32 array of. Called in threads, by
        several at once. What it raises, the call raises that it was needed for."""
        ...


class WordLlama:
    """An Embedder. Loads the model once, with the first text (about 0.5 s)."""

    name: Final = "wordllama"
    dimensions: Final = 256

    def __init__(self) -> None:
        self._model: Any = None
        self._lock = threading.Lock()

    def load(self) -> None:
        """Raises ConfigError when the extra is not installed."""
        with self._lock:
            if self._model is None:
                self._model = _loaded()

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), 256). Raises InvalidArgument for a text without any token or of
        more than 32 KiB; ConfigError as `load`."""
        for one in texts:
            if (size := len(one.encode())) > TEXT_BYTES_MAX:
                what = f"at most {TEXT_BYTES_MAX:,} bytes for {self.name}: cut it into passages"
                raise invalid("text", f"{size:,} bytes", what)
        self.load()
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for part in _parts(texts):
            vectors[part] = self._model.embed(texts[part])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        for position in np.flatnonzero(~(norms > 0)):
            shown = texts[int(position)][:80]
            raise InvalidArgument(f"text {shown!r} holds no word that the model knows", field="text")
        return np.asarray(vectors / norms, dtype=np.float32)


WORDLLAMA: Final = WordLlama()
"""The model of this process, for all who bring none of their own."""


def _loaded() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        wordllama = importlib.import_module("wordllama")
    except ImportError as error:
        raise ConfigError(f"{MISSING}; {error}", field="demo") from None
    finally:
        root.handlers[:] = handlers  # importing it calls logging.basicConfig
        root.setLevel(level)
    package = Path(str(wordllama.__file__)).parent
    try:
        # The wheel holds weights/ and tokenizers/; only as `cache_dir` are both found without a download.
        return wordllama.WordLlama.load(cache_dir=package, disable_download=True)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"wordllama {package} lacks its model files: {error}", field="demo") from None


def padded_bytes(texts: list[str]) -> int:
    """What WordLlama holds at once of texts, about: 2 KiB for each byte of those that it pads to one length."""
    longest = max((len(one.encode()) for one in texts), default=0)
    return 2048 * min(PADDED_BYTES, longest * len(texts))


def _parts(texts: list[str]) -> Iterator[slice]:
    """Consecutive texts that are worked on at once: they are padded to the longest of them."""
    start, longest = 0, 0
    for at, size in enumerate(len(one.encode()) for one in texts):
        widest = max(longest, size)
        if at > start and widest * (at - start + 1) > PADDED_BYTES:
            yield slice(start, at)
            start, widest = at, size
        longest = widest
    if start < len(texts):
        yield slice(start, len(texts))


# --- checks ----------------------------------------------------------------------------------------------------------
def check_embedder(embedder: Any) -> Embedder | None:
    """Raises ConfigError for what is none."""
    if embedder is None:
        return None
    name, dimensions = getattr(embedder, "name", None), getattr(embedder, "dimensions", None)
    whole = isinstance(dimensions, int) and not isinstance(dimensions, bool) and dimensions > 0
    if not isinstance(name, str) or not name or not whole or not callable(getattr(embedder, "embed", None)):
        raise refuse("embedder", embedder, EMBEDDER)
    made: Embedder = embedder
    return made


def check_model(model: Any) -> str:
    """The name of a model, "" for none. The server checks its length. Raises InvalidArgument."""
    return "" if model == "" else text(model, "model", "the name of a model, or '' for none")


def check_texts(texts: Any, field: str) -> list[str]:
    """Raises InvalidArgument for what is no list of texts."""
    if isinstance(texts, str | bytes | bytearray | Mapping | set | frozenset) or not hasattr(texts, "__iter__"):
        raise refused(field, texts, "a list of texts")
    return [text(one, f"{field}[{n}]", "a text that is not empty") for n, one in enumerate(texts)]


def dimensions_of(model: str, embedder: Embedder | None = None) -> int | None:
    """Of a model's vectors; None if nobody here knows it."""
    known = [one for one in (embedder, WORDLLAMA) if one is not None and one.name == model]
    return known[0].dimensions if known else None


def check_dimensions(spec: CollectionSpec, embedder: Embedder | None = None) -> None:
    """Raises InvalidArgument for a collection whose model makes other vectors than it holds."""
    there = dimensions_of(spec.model, embedder)
    if there is not None and there != spec.dimensions:
        raise invalid("dimensions", spec.dimensions, f"{there}, as the model {spec.model!r} has")


def check_takes(spec: CollectionSpec, embedder: Embedder) -> None:
    """Raises InvalidArgument unless the vectors of a collection are those of this embedder's model."""
    if not spec.model:
        why = f"collection {spec.name!r} names no model that makes vectors of texts"
        raise InvalidArgument(f"{why}: give a vector, or make a collection with a model", field="text")
    if spec.model != embedder.name:
        why = f"collection {spec.name!r} has vectors of the model {spec.model!r}, and texts become those of"
        raise InvalidArgument(f"{why} {embedder.name!r} here: give a vector, or another embedder", field="text")
    if spec.dimensions != embedder.dimensions:
        why = f"collection {spec.name!r} has vectors of {spec.dimensions} numbers, and {embedder.name!r} makes"
        raise InvalidArgument(f"{why} {embedder.dimensions} here: give a vector, or another embedder", field="text")


def rows_of(embedder: Embedder, texts: list[str]) -> Vectors:
    """Vectors of shape (len(texts), dimensions). Raises InvalidArgument where the embedder gives others."""
    if not texts:
        return np.zeros((0, embedder.dimensions), np.float32)
    rows = as_array(embedder.embed(texts), f"what {embedder.name} makes of texts", 2)
    if rows.shape != (len(texts), embedder.dimensions):
        there = f"{rows.shape[0]} vectors of {rows.shape[1]} dimensions"
        wanted = f"{len(texts)} of {embedder.dimensions} each"
        raise invalid(f"what {embedder.name} makes of texts", there, wanted)
    return rows
