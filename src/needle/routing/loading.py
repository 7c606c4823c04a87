"""Custom routing callables by name, from modules that configuration names.

Every process that routes needs the same callable under the same name: each node, and each client.
`module:function` is registered under that very text; a module named alone registers what it has by itself
(`needle.routing.strategy.register`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping

from needle.base.config import refuse
from needle.routing.strategy import register

ROUTERS_VARIABLE = "NEEDLE_ROUTERS"


def named_routers(environment: Mapping[str, str]) -> list[str]:
    """The modules of custom routing callables in NEEDLE_ROUTERS."""
    return [name.strip() for name in environment.get(ROUTERS_VARIABLE, "").split(",") if name.strip()]


def load_routers(names: Iterable[str], field: str) -> None:
    """Import each "module" or "module:function". Raises ConfigError, about the setting `field`, for what cannot be
    imported or called. The modules must be where Python finds them: installed, or in PYTHONPATH."""
    for name in names:
        module, _, function = name.partition(":")
        if not module or name.endswith(":"):
            raise refuse(field, name, "'module' or 'module:function'")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise refuse(field, name, f"a module that Python finds ({error}); see PYTHONPATH") from error
        if not function:
            continue
        router = getattr(found, function, None)
        if not callable(router):
            raise refuse(field, name, f"a function of {found.__file__}")
        register(name, router)
