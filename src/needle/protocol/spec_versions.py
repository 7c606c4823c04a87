"""Since which version of commands and formats what collections and their vectors are like can be read: what commands
that have such things say in NEWER. Pure."""

from __future__ import annotations

from typing import Final

from needle.base.dtypes import DType
from needle.base.versions import BITS, NAMED

OF_TYPES: Final = {"dtype": 5, f"dtype={DType.BIT}": BITS}
"""Of vectors in a command."""
OF_BITS: Final = {f"spec.dtype={DType.BIT}": BITS}
OF_SPEC_TYPES: Final = {"spec.dtype": 5} | OF_BITS
OF_SPECS: Final = {"spec.ttl": 2, "spec.index.kind": 4, "spec.model": 4, "spec.text": 5} | OF_SPEC_TYPES
"""Of what a collection is made as."""
OF_VECTORS: Final = {"vectors": NAMED, f"vectors.*.1.dtype={DType.BIT}": BITS}
"""Of its named vectors, pairs of a name and what they are like."""
