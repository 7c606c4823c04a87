"""Words to vectors with WordLlama, the small model inside its own wheel: no download, no network.

The only importer of wordllama. It is an optional extra, so the import happens on first use.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.base.errors import ConfigError, InvalidArgument

DIMENSIONS = 256
MISSING = (
    "embedding words needs the model that the demo uses: pip install 'needle-vdb[demo]' (or search with --vector FILE)"
)


class Embedder:
    """Loads the model once (about 0.5 s). Raises ConfigError when the extra is not installed."""

    def __init__(self) -> None:
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
            self._model: Any = wordllama.WordLlama.load(cache_dir=package, disable_download=True)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"wordllama {package} lacks its model files: {error}", field="demo") from None

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), 256). Raises InvalidArgument for a text without any token."""
        vectors = np.asarray(self._model.embed(texts), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        for position in np.flatnonzero(~(norms > 0)):
            raise InvalidArgument(f"text {texts[int(position)]!r} holds no word that the model knows")
        return np.asarray(vectors / norms, dtype=np.float32)
