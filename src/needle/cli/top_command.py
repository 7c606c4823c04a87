"""`needle top`: what a cluster does now, drawn again each second.

Plain text of any width; a terminal gets it in place of what it showed, a pipe one frame after the other. Knows no
more than `Client.activity` says.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

import needle
from needle.base.config import check_range
from needle.base.errors import Forbidden, NeedleError
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, as_json, notes, print_json, run
from needle.cli.rebalance_commands import key_in_words
from needle.client.activity import Activity, CallsNow, MoveNow, NodeNow, ShardNow
from needle.client.alerts import CRITICAL
from needle.routing.planned_moves import size_in_words

FIRST_SECONDS = 1.0
"""Between the two looks of the first frame."""
WIDTH_MIN, PIPE_WIDTH = 40, 80
SHARDS_MAX, HOT_MAX, MOVES_MAX, CONDITIONS_MAX, NODES_MAX = 16, 4, 6, 8, 16
KEY_WIDTH = 16
BOLD, RED, YELLOW, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
HOME, CLEAR = "\x1b[H", "\x1b[J"


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two frames.")] = 1.0,
    cluster: Cluster = DEFAULT_CLUSTER,
    json: Json = False,
) -> None:
    """Show shards, leaders, lags, calls, latencies, nodes and moves, again each second until Ctrl-C."""
    check_range("--every", every, 0.1, 3600)
    live = sys.stdout.isatty() and not json and not once

    async def work(client: needle.Client) -> None:
        last: Activity | None = await client.activity()
        await asyncio.sleep(FIRST_SECONDS if once else min(FIRST_SECONDS, every))
        while True:
            try:
                last = await client.activity(last)
                _show(last, json, live)
            except Forbidden:
                raise
            except NeedleError as error:
                if once:
                    raise
                say_silent(f"no answer: {error.message}", json=json, live=live)
            if once:
                return
            await asyncio.sleep(every)

    run(cluster, work)


def say_silent(text: str, *, json: bool, live: bool) -> None:
    """In the place of a frame; of a program only documents are on standard output."""
    if json:
        notes.print(text, markup=False, soft_wrap=True)
    else:
        _write([text], live)


def _show(now: Activity, json: bool, live: bool) -> None:
    if json:
        print_json({name: value for name, value in as_json(now).items() if name != "looked"})
        sys.stdout.flush()
        return
    width, height = shutil.get_terminal_size((PIPE_WIDTH, 24)) if sys.stdout.isatty() else (PIPE_WIDTH, 0)
    lines = frame(now, max(WIDTH_MIN, width), color=sys.stdout.isatty())
    _write(lines[: height - 1] if live and height > 1 else lines, live)


def _write(lines: Sequence[str], live: bool) -> None:
    """In one piece, so that nothing flickers."""
    end = f"{CLEAR}" if live else "\n"
    rows = "".join(f"{line}\x1b[K\n" for line in lines) if live else "".join(f"{line}\n" for line in lines)
    sys.stdout.write(f"{HOME if live else ''}{rows}{end}")
    sys.stdout.flush()


def frame(now: Activity, width: int, *, color: bool = False) -> list[str]:
    """The lines of one frame, none longer than `width`. What needs somebody comes first."""
    blocks = [
        _conditions(now, width, color),
        _calls(now, width, color),
        _table(_shards(now), width, color, now.shards, SHARDS_MAX),
        _table(_nodes(now), width, color, now.nodes, NODES_MAX),
        _moves(now, width),
        _hot(now, width, color),
    ]
    return [line for number, block in enumerate(filter(None, blocks)) for line in ([""] if number else []) + block]


def _conditions(now: Activity, width: int, color: bool) -> list[str]:
    led = sum(shard.leader is not None for shard in now.shards)
    up = sum(node.answers for node in now.nodes)
    head = f"{up} of {len(now.nodes)} nodes answer, {led} of {len(now.shards)} shards have a leader"
    found = now.conditions[:CONDITIONS_MAX]
    lines = [_painted(_cut(f"{one.severity.upper()} {one}", width), _style(one.severity), color) for one in found]
    more = len(now.conditions) - len(found)
    return [_painted(_cut(head, width), BOLD, color), *lines, *([f"and {more} more: needle status"] if more else [])]


def _calls(now: Activity, width: int, color: bool) -> list[str]:
    rows = [("calls", "/s", "p50", "p99"), *(_call(one) for one in now.calls)]
    if now.errors:
        rows.append(("errors", f"{now.errors:.1f}", "", ""))
    return _columns(rows, width, color)


def _call(one: CallsNow) -> tuple[str, ...]:
    return one.kind, f"{one.rate:.1f}", _ms(one.p50), _ms(one.p99)


def _shards(now: Activity) -> list[tuple[str, ...]]:
    heads = ("shard", "leader", "up", "documents", "behind", "lag", "writes/s", "reads/s")
    return [heads, *map(_shard, sorted(now.shards, key=_urgent)[:SHARDS_MAX])]


def _urgent(one: ShardNow) -> tuple[bool, bool, float, int]:
    """Shards in need first, then those that are called most."""
    return one.leader is not None, one.healthy >= one.replicas, -(one.writes + one.searches), one.shard


def _shard(one: ShardNow) -> tuple[str, ...]:
    lags = ("?", "?") if one.behind is None or one.lag_ms is None else (str(one.behind), f"{one.lag_ms:.0f} ms")
    rates = (f"{one.writes:.1f}", f"{one.searches:.1f}")
    up = f"{one.healthy}/{one.replicas}"
    return str(one.shard), one.leader or "none", up, f"{one.documents:,}", *lags, *rates


def _nodes(now: Activity) -> list[tuple[str, ...]]:
    heads = ("node", "leads", "calls/s", "cores", "memory", "on disk", "free")
    shown = sorted(now.nodes, key=lambda one: (one.answers, -(one.calls or 0.0), one.node))[:NODES_MAX]
    return [heads, *map(_node, shown)]


def _node(one: NodeNow) -> tuple[str, ...]:
    if not one.answers:
        return one.node, "silent", *[""] * 5
    cores = "?" if one.cpu is None else f"{one.cpu:.2f}/{one.cpus}"
    calls = "?" if one.calls is None else f"{one.calls:.1f}"
    sizes = ("?" if size is None else size_in_words(size) for size in (one.resident, one.disk_used, one.disk_free))
    return one.node, str(one.leads), calls, cores, *sizes


def _moves(now: Activity, width: int) -> list[str]:
    lines = [now.rebalance] if now.rebalance else []
    lines += map(_move, now.moves[:MOVES_MAX])
    more = len(now.moves) - MOVES_MAX
    lines += [f"and {more} more moves"] if more > 0 else []
    return [_cut(line, width) for line in lines]


def _move(one: MoveNow) -> str:
    return f"move {one.id}: shard {one.source} to {one.target}, {one.state}, {one.copied:,} documents copied"


def _hot(now: Activity, width: int, color: bool) -> list[str]:
    if not now.hot:
        return []
    rows = [("most called keys", "shard", "writes/s", "reads/s", "share")]
    for one in now.hot[:HOT_MAX]:
        span = " to ".join(_cut(key_in_words(key), KEY_WIDTH) for key in one.span)
        rates = (f"{one.writes:.1f}", f"{one.searches:.1f}", f"{one.share:.0%}")
        rows.append((span, str(one.shard), *rates))
    return _columns(rows, width, color)


# --- text ------------------------------------------------------------------------------------------------------------
def _table(
    rows: list[tuple[str, ...]], width: int, color: bool, of: Sequence[ShardNow] | Sequence[NodeNow], most: int
) -> list[str]:
    more = len(of) - most
    return _columns(rows, width, color) + ([f"and {more} more"] if more > 0 else [])


def _columns(rows: Sequence[tuple[str, ...]], width: int, color: bool) -> list[str]:
    """Rows below each other, the first column to the left, the others to the right, the heads bold."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    if over > 0:  # the first column gives way: names and ranges are longest
        widths[0] = max(8, widths[0] - over)
    lines = [_cut("  ".join(_cells(row, widths)).rstrip(), width) for row in rows]
    return [_painted(lines[0], BOLD, color), *lines[1:]]


def _cells(row: Iterable[str], widths: Sequence[int]) -> list[str]:
    return [
        _cut(cell, size).ljust(size) if n == 0 else cell.rjust(size)
        for n, (cell, size) in enumerate(zip(row, widths, strict=True))
    ]


def _cut(text: str, width: int) -> str:
    """On one line: what others have said must not steer the terminal."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= width else plain[: width - 3] + "..."


def _painted(text: str, style: str, color: bool) -> str:
    return f"{style}{text}{PLAIN}" if color else text


def _style(severity: str) -> str:
    return RED if severity == CRITICAL else YELLOW


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"
