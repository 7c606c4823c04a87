"""What one run is: everything that is drawn from the seed before the run begins. Pure.

Each fault is drawn from random numbers of its own, so that leaving one out does not change the others: that is what
lets a failing run be shrunk.
"""

from __future__ import annotations

import math
import random

import msgspec

from needle.base.model import IndexKind
from needle.multiraft.failpoints import FAILPOINTS
from proof.sim import log_files
from proof.sim.machine import stream

KINDS = {
    "kill": 10,
    "power-cut": 10,
    "power-cut-all": 2,
    "failpoint": 14,
    "pause": 8,
    "pause-cut": 8,
    "isolate": 8,
    "isolate-leader": 8,
    "one-way": 6,
    "bridge": 4,
    "split": 5,
    "weather": 8,
    "clog": 5,
    "slow-link": 5,
    "slow-disk": 4,
    "stalled-disk": 4,
    "disk-error": 4,
    "disk-full": 3,
    "rot": 3,
    "clock-rate": 4,
    "wall-jump": 2,
    "step-down": 6,
    "step-down-cut": 5,
    "force-election": 3,
    "force-cut": 3,
    "maintenance": 4,
    "demote": 4,
    "remove": 4,
    "replace": 3,
}
"""Weight of each kind of fault."""

SHARD_KINDS = {
    **{kind: weight for kind, weight in KINDS.items() if kind not in ("demote", "remove", "replace", "rot")},
    "catalog-leader": 8,
    "shard-down": 5,
    "client-off-catalog": 8,
    "node-off-catalog": 6,
    "client-off-shard": 8,
    "node-off-shard": 8,
    "move": 8,
    "join": 3,
    "leave": 3,
    "prefer": 5,
    "move-range": 40,
}
"""The same for several shards; what the first of these are about is in shards/faults.py."""

MORE_KINDS = {"rot-segment": 1, "log-cut": 2}
MORE_SHARD_KINDS = {
    "log-cut": 3,
    "rot": 3,
    "rot-segment": 3,
    "demote": 4,
    "remove": 4,
    "move-many": 3,
    "move-replica": 6,
}
"""Kinds that came later. They are drawn beside the others, under numbers of their own, so that the schedules of older
seeds stay what they were; `plain` runs do without them."""
MORE_SHARE, MORE_SHARD_SHARE = 0.08, 0.25
MORE_FROM = 1000
DIRECTORY_KINDS = {"wipe": 1, "rollback": 1}
"""A machine that comes back with empty disks, or an older copy: at most one a run, in a share of the runs, under a
number of its own. One machine of a run may lose data and no other, so in these runs no bit of a database flips."""
DIRECTORY_SHARE = 0.3
DIRECTORY_NUMBER = 2000
STRANGER_KINDS = {"stranger": 1}
"""Messages that no node of the cluster sent (strangers.py), in every run, under numbers of their own."""
STRANGER_SHARE = 0.04
STRANGER_FROM = 3000
DATABASE_KINDS = {"rot-documents": 1}
"""A bit that flips in one of a node's SQLite files, on one node of a run, under numbers of their own."""
DATABASE_SHARE = 0.12
DATABASE_FROM = 4000
FIELD_KINDS = {"rot-fields": 1}
"""A file of a field index that rots, or is gone, under numbers of their own."""
FIELD_SHARE = 0.08
FIELD_FROM = 9000
LATE_KINDS = {"late-command": 1}
"""A command to the catalog that comes once more, in every sharded run, under numbers of their own."""
LATE_SHARE = 0.1
LATE_FROM = 5000
REPLICA_KINDS = {"move-replica": 4, "demote": 1, "remove": 1}
"""The catalog is told of other nodes that are to hold a group, or of fewer for a while; in every sharded run, under
numbers of their own."""
REPLICA_SHARE = 0.3
REPLICA_FROM = 6000

WAY_BACK_KINDS = {"cancel-move": 1, "target-down": 1}
"""In some state of a move of key ranges it is cancelled, or a majority of its target goes away; in every sharded run,
under numbers of their own."""
WAY_BACK_SHARE = 0.15
WAY_BACK_FROM = 8000

RESIZE_KINDS = {"rebalance": 3, "add-shard": 3, "retire-shard": 2, "drain": 2}
"""The operator has the cluster grow, shrink and even out (resizing.py); in a share of the runs of a sharded cluster,
under numbers of their own."""
RESIZE_SHARE, RESIZING_SHARE = 0.6, 0.4
RESIZE_FROM = 7000
BY_HAND_KINDS = {"split-shard": 3, "move-by-hand": 3}
TURNOVER_KINDS = {"replace-node": 2, "remove-node": 2, "rolling-restart": 2}
GROW_KINDS = {**BY_HAND_KINDS, **TURNOVER_KINDS, "join": 2, "at-a-step": 9}
"""In the same runs: shards are split and replicas moved by hand; nodes are replaced, emptied and removed, restarted one
after the other, and join (turnover.py); and who takes part in a change dies at any of its steps (shards/phases.py)."""
GROW_SHARE, GROW_MIN = 1.0, 8
GROW_FROM = 9000
LOSS_KINDS = {"die": 1, "wipe": 1}
"""A machine that is gone for good, or comes back empty, also while a rebalance is under way; in a share of these runs,
in which no other machine loses anything."""
LOSS_SHARE = 0.5
LOSS_NUMBER = 10000
TROUBLE_KINDS = {"links-at-a-step": 1, "disks-at-a-step": 1}
"""At a step of a change, who takes part in it hears nobody, or is not heard, or its disk is slow, stalled or full
(shards/troubles.py); in every sharded run, under numbers of their own."""
TROUBLE_SHARE, TROUBLE_MIN = 0.4, 2
TROUBLE_FROM = 11000
MEMORY_KINDS = {"memory-tight": 1, "memory-full": 2}
"""A node takes nearly as much memory as it may, or more, in every run, under numbers of their own."""
MEMORY_SHARE = 0.12
MEMORY_FROM = 12000
HEALING_SHARE = 0.5
"""Of the runs in which shards come and go."""

REPLICA_FAILPOINTS = (
    "apply-before-commit",
    "apply-after-commit",
    "checkpoint-before",
    "checkpoint-after",
    "install-verified",
    "install-staged",
    "install-synced",
    "install-swapped",
)
"""Those of a replica's own files (shard/documents/image.py, shard/state_machine.py)."""
PLACES = (*FAILPOINTS, *REPLICA_FAILPOINTS)

TARGETS = ("leader", "leader", "follower", "any")


class Fault(msgspec.Struct, frozen=True):
    """One fault. at, seconds: when it begins and how long it lasts. target: leader, follower or any, resolved when it
    begins. amount: 0..1, how bad. name: the failpoint, for that kind."""

    number: int
    at: float
    kind: str
    seconds: float
    target: str
    amount: float
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.kind} {self.name}".strip()
        return f"fault {self.number}: {what} on {self.target} for {self.seconds:.2f} s (amount {self.amount:.2f})"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A run, but for what happens in it. faults: numbers of the faults to inject, None for all. operations_max: stop
    the workload after so many. sharded: a shape that the seed draws (shards/profile.py), not one shard. plain: without
    the kinds of fault that came later. backups: somebody makes some, whatever the seed draws."""

    seed: int
    nodes: int = 3
    seconds: float = 120.0
    clients: int = 4
    operations_max: int = 1_000_000
    faults: tuple[int, ...] | None = None
    calm: bool = False
    sharded: bool = False
    plain: bool = False
    backups: bool = False

    @property
    def resizes(self) -> bool:
        """Whether shards come and go in this run."""
        return self.sharded and not self.plain and stream(self.seed, "resizing").random() < RESIZING_SHARE

    @property
    def heals(self) -> bool:
        """Whether nodes are replaced that are gone for some seconds, and one is gone for good in the end."""
        return self.resizes and stream(self.seed, "healing").random() < HEALING_SHARE

    def schedule(self) -> list[Fault]:
        """The faults of this run, by time."""
        if self.calm:
            return []
        rate = 0.05 + 0.25 * stream(self.seed, "fault-rate").random()
        kinds = SHARD_KINDS if self.sharded else KINDS
        made = [_draw(self.seed, number, self.seconds, kinds) for number in range(int(self.seconds * rate))]
        if not self.plain:
            more, share = (MORE_SHARD_KINDS, MORE_SHARD_SHARE) if self.sharded else (MORE_KINDS, MORE_SHARE)
            numbers = range(MORE_FROM, MORE_FROM + math.ceil(self.seconds * rate * share))
            made += [_draw(self.seed, number, self.seconds, more) for number in numbers]
            forgetful = stream(self.seed, "directories").random() < DIRECTORY_SHARE
            if forgetful:
                made.append(_draw(self.seed, DIRECTORY_NUMBER, self.seconds, DIRECTORY_KINDS))
            strangers = range(STRANGER_FROM, STRANGER_FROM + math.ceil(self.seconds * rate * STRANGER_SHARE))
            made += [_draw(self.seed, number, self.seconds, STRANGER_KINDS) for number in strangers]
            rotting = 0 if forgetful else math.ceil(self.seconds * rate * DATABASE_SHARE)
            databases = range(DATABASE_FROM, DATABASE_FROM + rotting)
            made += [_draw(self.seed, number, self.seconds, DATABASE_KINDS) for number in databases]
            numbers = range(FIELD_FROM, FIELD_FROM + math.ceil(self.seconds * rate * FIELD_SHARE))
            made += [_draw(self.seed, number, self.seconds, FIELD_KINDS) for number in numbers]
            numbers = range(MEMORY_FROM, MEMORY_FROM + math.ceil(self.seconds * rate * MEMORY_SHARE))
            made += [_draw(self.seed, number, self.seconds, MEMORY_KINDS) for number in numbers]
            late = math.ceil(self.seconds * rate * LATE_SHARE) if self.sharded else 0
            numbers = range(LATE_FROM, LATE_FROM + late)
            made += [_draw(self.seed, number, self.seconds, LATE_KINDS) for number in numbers]
            replicas = math.ceil(self.seconds * rate * REPLICA_SHARE) if self.sharded else 0
            numbers = range(REPLICA_FROM, REPLICA_FROM + replicas)
            made += [_draw(self.seed, number, self.seconds, REPLICA_KINDS) for number in numbers]
            back = math.ceil(self.seconds * rate * WAY_BACK_SHARE) if self.sharded else 0
            numbers = range(WAY_BACK_FROM, WAY_BACK_FROM + back)
            made += [_draw(self.seed, number, self.seconds, WAY_BACK_KINDS) for number in numbers]
            troubles = max(TROUBLE_MIN, math.ceil(self.seconds * rate * TROUBLE_SHARE)) if self.sharded else 0
            numbers = range(TROUBLE_FROM, TROUBLE_FROM + troubles)
            made += [_draw(self.seed, number, self.seconds, TROUBLE_KINDS) for number in numbers]
            sizes = max(4, math.ceil(self.seconds * rate * RESIZE_SHARE)) if self.resizes else 0
            numbers = range(RESIZE_FROM, RESIZE_FROM + sizes)
            made += [_draw(self.seed, number, self.seconds, RESIZE_KINDS) for number in numbers]
            if self.resizes:
                made = [fault for fault in made if fault.kind not in ("join", "leave")]
                numbers = range(GROW_FROM, GROW_FROM + max(GROW_MIN, math.ceil(self.seconds * rate * GROW_SHARE)))
                made += [_draw(self.seed, number, self.seconds, GROW_KINDS) for number in numbers]
                if stream(self.seed, "loss").random() < LOSS_SHARE:
                    made.append(_draw(self.seed, LOSS_NUMBER, self.seconds, LOSS_KINDS))
        kept = [fault for fault in made if self.faults is None or fault.number in self.faults]
        return sorted(kept, key=lambda fault: (fault.at, fault.number))

    def replay_command(self) -> str:
        """What to type to see this run again."""
        parts = [f"python -m proof.sim --seed {self.seed} --nodes {self.nodes} --minutes {self.seconds / 60:g}"]
        if self.sharded:
            parts.append("--sharded")
        if self.plain:
            parts.append("--plain")
        if self.backups:
            parts.append("--backups")
        if self.faults is not None:
            parts.append(f"--faults {','.join(map(str, self.faults)) or 'none'}")
        if self.operations_max < 1_000_000:
            parts.append(f"--operations {self.operations_max}")
        return " ".join(parts)


def _draw(seed: int, number: int, seconds: float, kinds: dict[str, int]) -> Fault:
    rng = stream(seed, "fault", number)
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    return Fault(
        number=number,
        at=2.0 + rng.random() * max(seconds - 4.0, 0.1),
        kind=kind,
        seconds=_duration(kind, rng),
        target=TARGETS[rng.randrange(len(TARGETS))],
        amount=rng.random(),
        name=_place(kind, rng),
    )


def _place(kind: str, rng: random.Random) -> str:
    places = {"failpoint": PLACES, "log-cut": log_files.PLACES}.get(kind, ())
    return places[rng.randrange(len(places))] if places else ""


def _duration(kind: str, rng: random.Random) -> float:
    if kind == "pause-cut":
        return 1.5 + rng.expovariate(1 / 1.0)
    if kind in ("clog", "pause", "stalled-disk"):
        return 0.2 + rng.expovariate(1 / 2.0)
    if kind in ("demote", "remove", "maintenance"):
        return 4.0 + rng.expovariate(1 / 6.0)
    return 0.5 + rng.expovariate(1 / 4.0)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and limits of a run: small, so that rare paths are common. hot_share: of the operations, how many go to two
    keys that everybody wants; they rotate like the others."""

    dimensions: int
    metric: str
    snapshot_threshold: int
    seal_rows: int
    rows_max: int
    think_seconds: float
    delay: float
    clock_error: float
    key_slots: int
    operations_per_key: int
    append_bytes: int = 1 << 20
    commit_rows: int = 1024
    log_bytes: int = 16 << 30
    burst_clients: int = 0
    hot_share: float = 0.0
    scrub_interval: float = 3600.0
    index: IndexKind = IndexKind.HNSW


def profile(seed: int) -> Profile:
    """The profile of a seed."""
    rng = stream(seed, "profile")
    seal = rng.choice([5, 12, 30])
    return Profile(
        dimensions=rng.choice([4, 8]),
        metric=rng.choice(["cosine", "l2", "dot"]),
        snapshot_threshold=rng.choice([5, 5, 12, 30, 100]),
        seal_rows=seal,
        rows_max=seal * rng.choice([4, 16]),
        think_seconds=rng.choice([0.3, 0.6, 1.0]),
        delay=rng.choice([0.0005, 0.002, 0.01]),
        clock_error=rng.choice([0.0, 0.0005, 0.0009]),
        key_slots=rng.choice([3, 6, 12]),
        operations_per_key=rng.choice([15, 30]),
        append_bytes=stream(seed, "append-bytes").choice([1 << 20, 1 << 20, 300, 1]),
        commit_rows=stream(seed, "commit-rows").choice([1024, 1024, 20, 1]),
        log_bytes=stream(seed, "log-bytes").choice([1 << 18, 1 << 18, 1 << 19, 16 << 30]),
        burst_clients=stream(seed, "burst-clients").choice([0, 4]),
        scrub_interval=stream(seed, "scrub-interval").choice([5.0, 30.0, 3600.0]),
        index=stream(seed, "index").choice([IndexKind.HNSW, *IndexKind]),
    )
