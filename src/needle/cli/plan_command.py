"""`needle plan`: how much a cluster needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.table import Table

from needle.base.config import check_range, refuse
from needle.base.errors import ConfigError
from needle.base.model import GRAPHS, IndexKind
from needle.cli.common import Json, as_json, console, print_json, table
from needle.client.sizing import Sizing, plan_size
from needle.routing.planned_moves import size_in_words

COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
BYTES = {"": 1, "b": 1, **{unit: 1000**n for n, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
         **{unit: 1024**n for n, unit in enumerate(("kib", "mib", "gib", "tib"), 1)}}  # fmt: skip


def plan(
    vectors: Annotated[str, typer.Option("--vectors", help="How many, such as 200k, 50M or 1B.")],
    dimensions: Annotated[int, typer.Option("--dimensions", "-d", help="Of a vector.")],
    replicas: Annotated[int, typer.Option("--replicas", help="Copies of each shard.")] = 3,
    m: Annotated[int, typer.Option("--m", help="Links of a vector in the index.")] = 16,
    kind: Annotated[
        IndexKind, typer.Option("--index", help="Kind of index (docs/index-selection.md).")
    ] = IndexKind.HNSW,
    metadata_bytes: Annotated[int, typer.Option("--metadata-bytes", help="Of a document, in the mean.")] = 0,
    memory_per_node: Annotated[
        str | None,
        typer.Option("--memory-per-node", help="Such as 32GiB: as many shards as nodes of that size need."),
    ] = None,
    qps: Annotated[float, typer.Option("--qps", help="Searches a second.")] = 0.0,
    network: Annotated[float, typer.Option("--network", help="Between nodes, in Gbit/s.")] = 1.0,
    shards: Annotated[int | None, typer.Option("--shards", help="So many, whatever is recommended.")] = None,
    json: Json = False,
) -> None:
    """Say how many shards and nodes a cluster needs, with how much memory, disk and CPU. It needs no cluster."""
    network_bits = 1e9 * check_range("--network", network, 0.001, 10_000)
    size = partial(
        plan_size,
        vectors=_counted("--vectors", vectors, COUNTS, "a number, also with k, M or B"),
        dimensions=dimensions,
        replicas=replicas,
        m=m,
        metadata_bytes=metadata_bytes,
        memory_per_node=None
        if memory_per_node is None
        else _counted("--memory-per-node", memory_per_node, BYTES, "bytes, also with MB, GB, MiB or GiB"),
        qps=qps,
        network_bits=network_bits,
        shards=shards,
    )
    found = size(kind=kind)
    kinds = [other for other in (_fitting(size, one) for one in IndexKind) if other is not None]
    if json:
        others = {one.kind: {**as_json(one), "used_disk": one.used_disk} for one in kinds}
        print_json({**as_json(found), "used_disk": found.used_disk, "kinds": others})
        return
    rows = table("", "needed", "")
    for what, needed, why in _lines(found, chosen=shards is not None):
        rows.add_row(what, needed, why)
    console.print(rows)
    console.print(_of_kinds(kinds))


def _fitting(size: Callable[..., Sizing], kind: IndexKind) -> Sizing | None:
    """None where no number of shards does for a kind."""
    try:
        return size(kind=kind)
    except ConfigError:
        return None


def _of_kinds(kinds: list[Sizing]) -> Table:
    """What each kind of index would need."""
    rows = table("index", "shards", "nodes", "memory a node", "disk a node", "cores")
    for one in kinds:
        sizes = size_in_words(one.memory), size_in_words(one.disk)
        rows.add_row(one.kind, str(one.shards), str(one.nodes), *sizes, f"{one.cores:.1f}" if one.qps else "")
    return rows


def _counted(option: str, text: str, units: dict[str, int], allowed: str) -> int:
    grouped = r"(?:[0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]+)"  # else 1,5M, where people write decimals so, would be 15M
    match = re.fullmatch(rf"({grouped}(?:\.[0-9]+)?) ?([A-Za-z]*)", text.strip())
    if match is None or match[2].lower() not in units or len(text) > 40:
        raise refuse(option, text, allowed)
    return round(float(match[1].replace(",", "").replace("_", "")) * units[match[2].lower()])


def _lines(found: Sizing, *, chosen: bool) -> list[tuple[str, str, str]]:
    """What is needed, and why. chosen: the number of shards was given."""
    guide, room = found.guide_shards, found.memory_per_node
    many = f"the guide has {guide} for {found.vectors:,} vectors"
    if room is not None and chosen and found.memory > room:
        many += f"; one of so many does not fit into {size_in_words(room)}"
    elif room is not None and not chosen and found.shards > guide:
        many += f"; more, so that one fits into {size_in_words(room)}"
    built = f"{size_in_words(found.building_memory)} while an index file is built; a fifth stays free"
    parts = [("documents", found.documents), ("index files", found.index), ("log", found.log)]
    kept = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts)
    lines = [
        ("shards", str(found.shards), many),
        ("nodes", str(found.nodes), f"one replica each, {found.replicas} of a shard"),
        ("vectors a shard", f"{found.vectors_per_shard:,}", f"{found.dimensions} dimensions, {_index(found)}"),
        ("memory a node", size_in_words(found.memory), f"{size_in_words(found.used_memory)} in use; {built}"),
        (
            "disk a node",
            size_in_words(found.disk),
            f"{kept}; {size_in_words(found.building)} for a build; a fifth free",
        ),
    ]
    if found.qps:
        each = f"{found.cores / found.nodes:.1f} a node, for {found.qps:g} searches a second, each in all shards"
        lines.append(("cores", f"{found.cores:.1f}", f"{each}; more for writes and index builds"))
    rate = f"{found.network_bits / 1e9:g} Gbit/s"
    moved = f"{size_in_words(found.replica)}: a replica's way to a new node, at {rate} that nothing else uses"
    lines.append(("rebuild", _duration(found.rebuild_seconds), moved))
    return lines


def _index(found: Sizing) -> str:
    return f"index {found.kind}" + (f", m {found.m}" if found.kind in GRAPHS else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
