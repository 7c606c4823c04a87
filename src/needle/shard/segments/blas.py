"""One thread for each matrix product of NumPy's own OpenBLAS.

Searches run side by side in threads of their own. OpenBLAS would share each product out to all cores and wait for them
by spinning: measured on 2 busy cores, a scan of 2,700 x 384 for 16 queries took 880 us of CPU a query instead of 86,
and 2,740 us instead of 370 until the answer. The setting is the process's; there is none for a thread.

Another BLAS than the one in NumPy's wheels is left as it is (environment variables such as OMP_NUM_THREADS set it).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

_PREFIXES = ("scipy_openblas_", "openblas_")
_SUFFIXES = ("64_", "")


@cache
def use_one_thread() -> bool:
    """Set it, once. False: NumPy has no OpenBLAS of its own."""
    found = _functions()
    if found is None:
        return False
    set_threads, _ = found
    set_threads(1)
    return True


def threads() -> int:
    """How many threads a product may use now; 0: NumPy has no OpenBLAS of its own."""
    found = _functions()
    return 0 if found is None else int(found[1]())


def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    """(set the number of threads, get it)."""
    package = Path(np.__file__).parent
    for path in [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]:
        library = ctypes.CDLL(str(path))  # it is loaded already: this only finds it
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                name = f"{prefix}set_num_threads{suffix}"
                if hasattr(library, name):
                    return getattr(library, name), getattr(library, name.replace("set_", "get_"))
    return None
