"""`needle demo`: sets the stage, tells the story, clears up."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from needle.base.errors import InvalidArgument
from needle.cli.common import Json, notes, print_json, standard_output
from needle.cli.demo.corpus import Passage, read_corpus, stdlib_directory
from needle.cli.demo.growth import grow
from needle.cli.demo.outcome import Outcome
from needle.cli.demo.story import QUESTIONS, Story
from needle.client.embedding import WORDLLAMA
from needle.local.free_ports import free_ports
from needle.local.kept import STATE_FILE, STOP_SECONDS, kept_pids, stop_kept
from needle.local.process_cluster import ProcessCluster

KEPT_PORT = 5001
KEPT_HTTP_PORT = 6001
SEAL_ROWS = 2000
SETTINGS: dict[str, Any] = {"dimensions": None, "segments": {"seal_rows": SEAL_ROWS}}
FOUNDERS = 3
VOTERS_MAX = 7


def kept_directory() -> Path:
    """Where `needle demo --keep` puts its nodes unless told otherwise: one place for each user."""
    return Path(tempfile.gettempdir()) / f"needle-demo-{os.getuid()}"


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running and say how to use it.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop what --keep left running; delete its data.")] = False,
    nodes: Annotated[
        int, typer.Option("--nodes", min=3, max=16, help="How many nodes; 7 at most without --shards.")
    ] = 3,
    shards: Annotated[
        int, typer.Option("--shards", min=1, max=64, help="Let the cluster grow to this many shards in the end.")
    ] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=10, help="Insert only this many passages.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the nodes keep their data; default: the temporary directory.")
    ] = None,
    json: Json = False,
) -> None:
    """See Needle work: a real cluster on this machine, searched in words, its leader killed, nothing lost.

    Embeds the docstrings of Python's standard library, inserts them into a cluster of processes, asks questions, kills
    the leader with kill -9 in the middle of writes, proves that every acknowledged write survived, and brings the dead
    node back. With --shards: the same cluster, three nodes with one shard, then grows to that many shards, on --nodes
    nodes, while it is written to. Needs no network. The nodes end with the demo unless --keep is given.
    """
    if stop:
        _stop(directory or kept_directory())
        return
    if shards == 1 and nodes > VOTERS_MAX:
        raise InvalidArgument(
            f"--nodes {nodes} needs --shards: one shard has at most {VOTERS_MAX} replicas", field="nodes"
        )
    place = _prepare(directory, keep)
    told = notes if json else standard_output(markup=True)
    first = nodes if shards == 1 else FOUNDERS
    kept = [*range(KEPT_PORT, KEPT_PORT + first), *range(KEPT_HTTP_PORT, KEPT_HTTP_PORT + first)]
    ports = free_ports(2 * first, kept if keep else ())
    cluster = ProcessCluster(place, first, ports=ports, as_user=True, detached=keep, **SETTINGS)
    finished = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: SIGTERM would be ignored, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    terminated = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # so both clear up
    try:
        outcome = _perform(cluster, limit, told, nodes, shards)
        finished = True
    finally:
        signal.signal(signal.SIGTERM, terminated)
        if not (finished and keep):
            cluster.stop(STOP_SECONDS)
        if finished and not keep:
            shutil.rmtree(place)
        elif not finished:
            notes.print(f"the nodes are stopped; their logs and data are in {place}", markup=False, soft_wrap=True)
    if keep:
        _say_what_next(cluster, cluster.release(), directory, told)
    if json:
        print_json(outcome)


def _stop(place: Path) -> None:
    place = place.absolute()
    if place.exists() and not (place / STATE_FILE).exists():
        raise InvalidArgument(f"--dir {place} is not a demo's directory")
    stopped = stop_kept(place)
    shutil.rmtree(place, ignore_errors=True)
    notes.print(f"stopped {', '.join(stopped)}" if stopped else f"no demo is running in {place}", markup=False)


def _prepare(directory: Path | None, keep: bool) -> Path:
    """An empty directory for this run. Raises InvalidArgument rather than touch what is not a demo's."""
    if directory is None and not keep:
        return Path(tempfile.mkdtemp(prefix="needle-demo-"))
    place = (directory or kept_directory()).absolute()
    running = kept_pids(place)
    if running:
        raise InvalidArgument(f"a demo is running in {place} ({', '.join(running)}); `needle demo --stop` ends it")
    if directory is None:
        shutil.rmtree(place, ignore_errors=True)  # what an earlier run left
    elif place.exists() and any(place.iterdir()):
        raise InvalidArgument(f"--dir {place} is not empty")
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def _perform(cluster: ProcessCluster, limit: int | None, told: Console, nodes: int, shards: int) -> Outcome:
    began = time.perf_counter()
    cluster.start_nodes()  # they start while the corpus is read
    passages, vectors, seconds = _corpus(limit)
    told.print(
        f"[bold]{len(passages)} passages[/] from the docstrings of {stdlib_directory()} read in {seconds[0]:.1f} s, "
        f"embedded in {seconds[1]:.1f} s ({WORDLLAMA.dimensions} dimensions)",
        soft_wrap=True,
    )

    async def tell() -> Outcome:
        async with cluster.connect() as client:
            story = Story(cluster, client, told)
            await story.wait_ready()
            await story.load(passages, vectors)
            await story.wait_indexed(SEAL_ROWS)
            await story.ask()
            await story.ask_for_codes(passages)
            await story.prove(await story.lose_the_leader(vectors))
            if shards > 1:
                story.outcome.growth = await grow(cluster, client, QUESTIONS, vectors, told, nodes=nodes, shards=shards)
            return story.outcome

    outcome = asyncio.run(tell())
    outcome.read_seconds, outcome.embed_seconds = seconds
    outcome.total_seconds = time.perf_counter() - began
    told.print(f"[bold green]done[/] in {outcome.total_seconds:.0f} s")
    return outcome


def _corpus(limit: int | None) -> tuple[list[Passage], NDArray[np.float32], tuple[float, float]]:
    """Passages, their vectors, seconds to read and to embed."""
    started = time.perf_counter()
    WORDLLAMA.load()
    loaded = time.perf_counter()
    passages = read_corpus(stdlib_directory(), limit)
    read = time.perf_counter()
    vectors = WORDLLAMA.embed([passage.sentence for passage in passages])
    return passages, vectors, (read - loaded, time.perf_counter() - read + loaded - started)


def _say_what_next(cluster: ProcessCluster, pids: dict[str, int], directory: Path | None, told: Console) -> None:
    default = all(address.endswith(f":{KEPT_PORT + n}") for n, address in enumerate(cluster.addresses.values()))
    place = f" --dir {directory}" if directory else ""
    lines = ["The cluster is still running. Next:", ""]
    if not default or len(cluster.addresses) != 3:
        lines.append(f"  export NEEDLE_CLUSTER={cluster.cluster}")
    lines += [
        "  needle status --watch",
        '  needle search "read a CSV file" -k 5',
        f"  open http://{next(iter(cluster.nodes.values())).http}/ui    # the dashboard; /docs is the HTTP API",
        "  needle step-down",
        f"  kill -9 {next(iter(pids.values()))}    # one of the nodes; watch `needle status`",
        f"  needle demo --stop{place}",
    ]
    told.print("\n".join(lines), markup=False, soft_wrap=True)
