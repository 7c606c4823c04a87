"""What Prometheus is answered: the text of metrics that were read.

Prometheus' own writer looks at each name and label of each sample anew: with 128 shards that was half of what a scrape
costs. Here a set of labels is written once. The text is the same, byte by byte. Names come of the table of metrics, so
they need no escape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_VALUE = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_number: Callable[[float], str] = floatToGoString
_APART = "_created"
"""When something was first counted: a gauge of its own in this format."""


def text(families: Iterable[Metric], common: Mapping[str, str]) -> bytes:
    """All samples of the metrics. common: labels that each has beside its own."""
    known: dict[tuple[tuple[str, str], ...], str] = {}

    def labels(own: Mapping[str, str]) -> str:
        key = tuple(own.items())
        found = known.get(key)
        if found is None:
            told = [f'{name}="{value.translate(_VALUE)}"' for name, value in sorted({**own, **common}.items())]
            found = known[key] = "{" + ",".join(told) + "}" if told else ""
        return found

    lines: list[str] = []
    for family in families:
        meaning, apart = family.documentation.translate(_HELP), list[str]()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {meaning}\n# TYPE {name} {family.type}")
        created = family.name + _APART
        for one in family.samples:
            line = f"{one.name}{labels(one.labels)} {_number(one.value)}"
            (apart if one.name == created else lines).append(line)
        if apart:
            lines.append(f"# HELP {created} {meaning}\n# TYPE {created} gauge")
            lines += apart
    lines.append("")
    return "\n".join(lines).encode()
