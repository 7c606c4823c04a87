"""`needle rebalance`, `needle cluster stats | plan`: what a cluster holds, and evening it out.

Each command that moves something prints the plan with --dry-run instead, and otherwise follows the rebalance until it
is over; the cluster goes on without who watches.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer

import needle
from needle.base.config import refuse
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, RebalanceEnded, Unavailable
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Json,
    Timeout,
    as_json,
    console,
    notes,
    print_json,
    run,
    table,
)
from needle.cli.expected import expected_in_words, rates_in_words
from needle.client.rebalancing import still_emptied, without_keys
from needle.routing.copy_rates import MEASURED_ELSEWHERE, CopyRates
from needle.routing.jobs import JobState, Progress, RebalanceConfig, check_over
from needle.routing.pace import expected_seconds
from needle.routing.planned_moves import MoveReplicas, PreferLeader, size_in_words
from needle.routing.plans import Plan, Wish
from needle.routing.stats import RebalanceStats
from needle.routing.topology import Topology

LOOK_SECONDS = 0.5

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would move, and move nothing. Exit code 1 if it would be refused.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once it is decided; --status shows how far it is.")]
Moves = Annotated[int, typer.Option("--moves", min=1, max=100, help="Moves at a time.")]
Batch = Annotated[
    int, typer.Option("--batch", min=1, max=10_000, help="Documents of a move copied between two pauses.")
]
Throttle = Annotated[float, typer.Option("--throttle", min=0, max=3600, help="Seconds between two batches of a move.")]
Lost = Annotated[
    list[str] | None,
    typer.Option("--lost", metavar="NODE", help="A node that will not come back: others get its replicas. Repeatable."),
]


Heat = Annotated[
    float,
    typer.Option(
        "--heat",
        min=0,
        max=1,
        help="How much calls a second count beside sizes: 0 not at all, 0.5 as much, 1 alone.",
    ),
]


def stats(cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 10.0, json: Json = False) -> None:
    """Show what each shard holds, how even that is, and what each node holds and has room for."""
    found = run(cluster, lambda client: client.get_stats(timeout=timeout))
    if json:
        print_json(found)
        return
    _show_stats(found)


def _show_stats(found: RebalanceStats) -> None:
    shards = table("shard", "documents", "size", "keys", "writes/s", "searches/s")
    for shard, one in found.shard_sizes.items():
        rates = (f"{one.writes:.1f}", f"{one.searches:.1f}")
        shards.add_row(str(shard), str(one.documents), size_in_words(one.bytes), f"{one.share:.1%}", *rates)
    for shard in found.unknown:
        shards.add_row(str(shard), *["?"] * 5)
    console.print(shards)
    if found.unknown:
        console.print(f"no leader of shard {', '.join(map(str, found.unknown))} answers: what it holds counts nowhere")
    console.print(f"imbalance {found.imbalance_ratio:.2f} by size, {found.documents_imbalance:.2f} by documents\n")
    nodes = table("node", "replicas", "leads", "documents", "size", "filled", "on disk", "free", "disk")
    for name, load in found.nodes.items():
        nodes.add_row(
            name if load.alive else f"{name} (does not answer)",
            str(load.replicas),
            str(load.leads),
            str(load.documents),
            size_in_words(load.bytes),
            f"{load.filled:.2f}",
            *("?" if size is None else size_in_words(size) for size in (load.used, load.free, load.total)),
        )
    console.print(nodes)
    if found.hot_ranges:
        hot = table("most called keys", "shard", "writes/s", "searches/s", "share")
        for part in found.hot_ranges:
            span = f"{key_in_words(part.span[0])} to {key_in_words(part.span[1])}"
            hot.add_row(span, str(part.shard), f"{part.writes:.1f}", f"{part.searches:.1f}", f"{part.share:.1%}")
        console.print(hot)


def key_in_words(key: bytes | None) -> str:
    """A routing key: as text where it is an id, else in hex."""
    if not key:
        return "the end" if key is None else "the first"
    return key.decode() if key.isascii() and key.decode().isprintable() else key.hex()


def plan(
    add_shard: Annotated[bool, typer.Option("--add-shard", help="With one shard more.")] = False,
    remove_shard: Annotated[
        list[int] | None, typer.Option("--remove-shard", metavar="SHARD", help="Without this shard. Repeatable.")
    ] = None,
    drain: Annotated[
        list[str] | None, typer.Option("--drain", metavar="NODE", help="With nothing on this node. Repeatable.")
    ] = None,
    lost: Lost = None,
    heat: Heat = 0.0,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Print what would move so that the cluster is even, or as the options say. Nothing does."""

    async def work(client: needle.Client) -> Plan:
        count = None
        if add_shard:
            serving = (await client.refresh_topology(confirmed=True, timeout=timeout)).serving
            count = len(serving) + 1 - len(remove_shard or ())
        retire, drained = tuple(remove_shard or ()), tuple(drain or ())
        wish = Wish(shards=count, retire=retire, drain=drained, lost=tuple(lost or ()), heat=heat)
        return await client.plan_rebalance(wish, timeout=timeout)

    show_plan(run(cluster, work), json, RebalanceConfig())


def show_plan(made: Plan, json: bool, config: RebalanceConfig) -> None:
    """config: the pace by which it says how long that takes."""
    seconds = expected_seconds(made.moves, config, made.rates)
    if json:
        sums = {"bytes": made.bytes, "documents": made.documents, "ratio": made.ratio, "seconds": seconds}
        print_json({**as_json(made), **sums})
        return
    for line in made.in_words():
        console.print(line, soft_wrap=True)
    if made.moves:
        console.print(f"{expected_in_words(seconds)}{rates_in_words(made.moves, made.rates)}", soft_wrap=True)


def show_moves(
    moves: Sequence[MoveReplicas | PreferLeader],
    json: bool,
    config: RebalanceConfig,
    then: str = "",
    rates: CopyRates = MEASURED_ELSEWHERE,
) -> None:
    """Moves of groups alone. then: what follows them, for people. rates: as of a plan."""
    seconds, size = expected_seconds(moves, config, rates), sum(move.bytes for move in moves)
    if json:
        documents = sum(move.documents for move in moves)
        print_json({"moves": as_json(moves), "bytes": size, "documents": documents, "seconds": seconds})
        return
    for number, move in enumerate(moves, 1):
        console.print(f"{number}. {move.in_words()}", soft_wrap=True)
    if moves:
        told = f"{expected_in_words(seconds)}{rates_in_words(moves, rates)}"
        console.print(f"{len(moves)} moves copy {size_in_words(size)}; {told}", soft_wrap=True)
    if then or not moves:
        console.print(then or "nothing has to move")


def rebalance(
    id_: Annotated[
        int | None,
        typer.Argument(
            metavar="ID",
            min=1,
            help="Which rebalance, with --status one of the last 17; by default the last. Only with --status, --pause, "
            "--resume and --cancel.",
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option(
            "--status", help="Show how far a rebalance is, or how it ended. Exit code 1 if it failed or was cancelled."
        ),
    ] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Have it start no more moves, and copy no more.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Have it go on.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it: what is not decided is taken back.")] = False,
    dry_run: DryRun = False,
    lost: Lost = None,
    heat: Heat = 0.0,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Even out shards and nodes, while the cluster serves, and show how far it is; or look after a rebalance."""
    asks = [name for name, on in (("pause", pause), ("resume", resume), ("cancel", cancel)) if on]
    if len(asks) + status + dry_run > 1:
        raise refuse("--" + (asks or ["status"])[0], "with others", "one of --status, --pause, --resume, --cancel")
    if id_ is not None and not (asks or status):
        raise refuse("ID", id_, "given with --status, --pause, --resume or --cancel only")
    if asks:
        _ask(asks[0], id_, cluster, timeout)
    if status or asks:
        found = run(cluster, lambda client: client.rebalance_progress(id_, timeout=timeout))
        if found is None:
            raise InvalidArgument("this cluster was never rebalanced", field="rebalance")
        show_progress(found, json)
        if status:
            _check_ended(found)
        return
    wish, config = Wish(lost=tuple(lost or ()), heat=heat), pace(moves, batch, throttle)

    async def start(client: needle.Client) -> int:
        return await client.start_rebalance(config, wish=wish, timeout=timeout)

    carry_out(
        cluster, lambda client: client.plan_rebalance(wish, timeout=timeout), start, config, dry_run, no_wait, json
    )


# --- what they share -------------------------------------------------------------------------------------------------
def pace(moves: int, batch: int, throttle: float) -> RebalanceConfig:
    return RebalanceConfig(max_concurrent_moves=moves, batch_size=batch, throttle_rate=throttle)


def not_whole(made: Plan) -> str:
    """Why what is asked for by hand would be refused: it is done as a whole, or not at all."""
    return made.missing(unmet=True, waiting=True)


def not_emptied(made: Plan) -> str:
    """Why it would be refused to empty a node: another one must take each replica."""
    return made.missing(unmet=True)


def _ask(what: str, id_: int | None, cluster: str, timeout: float) -> None:
    async def work(client: needle.Client) -> None:
        asks = {"pause": client.pause_rebalance, "resume": client.resume_rebalance, "cancel": client.cancel_rebalance}
        await asks[what](id_, timeout=timeout)
        if what == "cancel":
            now = await client.refresh_topology(confirmed=True, timeout=timeout)
            for node in still_emptied(now):
                again = f"`needle node drain --undo {node}` has it used again"
                notes.print(
                    f"{node} is to be emptied still, and gets nothing new: {again}", markup=False, soft_wrap=True
                )
            for shard in without_keys(now):
                how = f"`needle rebalance` gives it its share, `needle shard remove {shard}` takes it away"
                notes.print(f"shard {shard} stays, and owns no keys: {how}", markup=False, soft_wrap=True)

    run(cluster, work)


def carry_out(
    cluster: str,
    planned: Callable[[needle.Client], Awaitable[Plan]],
    start: Callable[[needle.Client], Awaitable[int | None]],
    config: RebalanceConfig,
    dry_run: bool,
    no_wait: bool,
    json: bool,
    refused: Callable[[Plan], str] = Plan.missing,
    deadline: float = math.inf,
    goes_on: Callable[[Topology], bool] = lambda _: False,
) -> None:
    """start: the rebalance's id, None if nothing has to move. refused: why a rebalance by this plan would not be begun,
    empty if it would; as the client's method asks. config: as of `start`. deadline: see `followed`. goes_on: whether
    `start` would find that it was begun before, or that nothing has to move."""
    if dry_run:
        _show_only(cluster, planned, refused, config, json, goes_on)
        return

    async def work(client: needle.Client) -> Progress | None:
        id_ = await start(client)
        if id_ is None:
            return None
        if not json:
            notes.print(f"rebalance {id_} has begun; it goes on if you stop watching", markup=False)
        return await followed(client, id_, no_wait, json, deadline)

    found = run(cluster, work)
    if found is None:
        if json:
            print_json({"id": None, "is_complete": True})
        else:
            notes.print("nothing has to move")
        return
    show_progress(found, json)
    _check_ended(found)


def _check_ended(found: Progress) -> None:
    """Raises RebalanceEnded for one that is over without having done its work: what comes next in a script, as stopping
    a node, must not go on."""
    if found.state is JobState.FAILED:
        raise RebalanceEnded(f"rebalance {found.id} has failed: {found.why}", id=found.id, state=found.state.value)
    if found.state is JobState.CANCELLED:
        why = f": {found.why}" if found.why else ""
        told = f"rebalance {found.id} was cancelled{why}; what was not moved yet stays where it was"
        raise RebalanceEnded(told, id=found.id, state=found.state.value)


def _show_only(
    cluster: str,
    planned: Callable[[needle.Client], Awaitable[Plan]],
    refused: Callable[[Plan], str],
    config: RebalanceConfig,
    json: bool,
    goes_on: Callable[[Topology], bool],
) -> None:
    """Show the plan; fail as the command itself would, for scripts that ask first."""

    async def work(client: needle.Client) -> tuple[Plan, Topology]:
        return await planned(client), await client.refresh_topology(confirmed=True)

    made, now = run(cluster, work)
    show_plan(made, json, config)
    if goes_on(now):
        return
    if why := refused(made):
        kind = InvalidArgument if made.beyond_help else Unavailable  # what can never be is no matter of now
        raise kind(f"it would be refused{'' if made.beyond_help else ' now'}: {why}")
    check_over(now.rebalance)


async def followed(client: needle.Client, id_: int, no_wait: bool, json: bool, deadline: float = math.inf) -> Progress:
    """Until it is over; a line whenever something changes. Raises DeadlineExceeded at the deadline, by
    time.monotonic(): somebody may have paused it, or it waits for a node that nobody starts."""
    last: tuple[str, ...] = ()
    while True:
        try:
            found = await client.rebalance_progress(id_, timeout=max(1.0, min(10.0, deadline - time.monotonic())))
        except NeedleError as error:  # the catalog's leader changes: it goes on all the same
            if not error.retryable or time.monotonic() >= deadline:
                raise
            notes.print(f"no answer: {error.message}", markup=False)
            await asyncio.sleep(LOOK_SECONDS)
            continue
        assert found is not None  # an id was named
        if no_wait or found.is_complete:
            return found
        now = _lines(found)
        if not json and now != last:
            notes.print("\n".join(now), markup=False, soft_wrap=True)
        last = now
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(_not_over(found))
        await asyncio.sleep(LOOK_SECONDS)


def _not_over(found: Progress) -> str:
    """What became of a command whose time is up."""
    why = f": {found.why}" if found.why else ""
    if found.state is JobState.PAUSED:
        return f"rebalance {found.id} is paused{why}; `needle rebalance --resume`, then repeat this command"
    return f"rebalance {found.id} is not over in time{why}; it goes on, and this command may be repeated"


def show_progress(found: Progress, json: bool) -> None:
    if json:
        print_json({**as_json(found), "is_complete": found.is_complete})
        return
    for line in _lines(found):
        console.print(line, soft_wrap=True)


def _lines(found: Progress) -> tuple[str, ...]:
    moved = f"{size_in_words(found.moved_bytes)} of {size_in_words(found.total_bytes)}"
    rate = f", {size_in_words(round(found.rate))}/s" if found.rate else ""
    eta = f", {found.eta:.0f} s left" if found.eta is not None else ""
    first = f"rebalance {found.id} is {found.state}: {int(found.percent_complete)} %, {moved} copied{rate}{eta}"
    moves = tuple(f"  {found.phases[id_]}: {words}" for id_, words in found.moves.items())
    return (first, *moves, *((f"  {found.why}",) if found.why else ()))
