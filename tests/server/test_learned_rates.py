"""What the coordinator learns of its moves: how fast they copied, without the pauses that it makes itself."""

from __future__ import annotations

import msgspec
import pytest

from needle.routing.jobs import Job, JobState, Phase, RebalanceConfig, Running
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas
from needle.routing.plans import Wish
from needle.server.upkeep.getting_on import STILL_SECONDS
from needle.server.upkeep.learned_rates import MOVES, Lately, LearnedRates

LOOK = 0.5
RANGE = MoveRange(source=0, target=1, ranges=((b"", b"m"),), documents=10_000, bytes=1_000_000)
PACED = RebalanceConfig(batch_size=1000, throttle_rate=0.5)
UNPACED = RebalanceConfig(throttle_rate=0.0)


def replicas(group: int = 3, *added: str, size: int = 1_000_000) -> MoveReplicas:
    added = added or ("c",)
    after = ("a", *added)
    return MoveReplicas(group=group, before=("a", "b"), after=after, documents=10_000, bytes=size)


def running(number: int, move: Move, copied: int, phase: Phase = Phase.COPY) -> Running:
    nodes = move.added if isinstance(move, MoveReplicas) else ("c",)
    return Running(id=number, move=move, nodes=nodes, phase=phase, copied=copied)


def job(config: RebalanceConfig = UNPACED, state: JobState = JobState.RUNNING) -> Job:
    return Job(id=5, wish=Wish(), config=config, state=state)


class Watched:
    """Learned by looks of moves that copy at a rate, bytes a second while they do not pause."""

    def __init__(self) -> None:
        self.learned = LearnedRates()
        self.now = 100.0

    def copy(self, rate: float, *moves: Move, config: RebalanceConfig = UNPACED, rests: float = 0.0, looks: int = 8):
        """rests: seconds of each look in which nothing comes."""
        for at in range(looks + 1):
            copied = round(at * rate * (LOOK - rests))
            self.look([running(n, move, copied) for n, move in enumerate(moves, 1)], config)
        self.look([running(n, move, move.bytes, Phase.CATCH_UP) for n, move in enumerate(moves, 1)], config)

    def look(self, some: list[Running], config: RebalanceConfig = UNPACED, state: JobState = JobState.RUNNING) -> None:
        self.learned.look(job(config, state), some, self.now)
        self.now += LOOK


def test_nothing_is_known_before_anything_has_moved() -> None:
    rates = LearnedRates().rates()
    assert (rates.replica_bytes, rates.range_documents) == (None, None)
    assert rates.replica > rates.range > 0


def test_a_replica_teaches_bytes_and_a_range_documents() -> None:
    watched = Watched()
    watched.copy(200_000, replicas(), RANGE)
    rates = watched.learned.rates()
    assert rates.replica == rates.replica_bytes == pytest.approx(200_000)
    assert rates.range == rates.range_documents == pytest.approx(2_000)


def test_of_several_new_replicas_each_comes_at_its_part() -> None:
    watched = Watched()
    watched.copy(200_000, replicas(3, "c", "d"))
    assert watched.learned.rates().replica_bytes == pytest.approx(100_000)


@pytest.mark.parametrize("move", [replicas(), RANGE])
def test_pauses_are_not_taken_for_slowness(move: Move) -> None:
    """At 100 documents a look, each of which pauses 0.05 s."""
    watched = Watched()
    watched.copy(10_000 / 0.45, move, config=PACED, rests=0.05)
    rates = watched.learned.rates()
    found = rates.replica_bytes if isinstance(move, MoveReplicas) else (rates.range_documents or 0.0) * 100
    assert found == pytest.approx(10_000 / 0.45)


def test_two_replicas_that_one_node_fetches_share_its_rests() -> None:
    watched = Watched()
    watched.copy(10_000 / 0.4, replicas(3), replicas(4), config=PACED, rests=0.1)
    assert watched.learned.rates().replica_bytes == pytest.approx(10_000 / 0.4)


def test_a_move_that_was_hardly_seen_to_copy_teaches_nothing() -> None:
    watched = Watched()
    watched.copy(200_000, replicas(), RANGE, looks=3)
    assert watched.learned.rates().replica_bytes is None and watched.learned.rates().range_documents is None


def test_what_is_paused_or_waits_for_a_node_is_not_slow() -> None:
    watched = Watched()
    for copied in (0, 100_000, 200_000, 300_000, 400_000):
        watched.look([running(1, replicas(), copied)])
    for _ in range(100):
        watched.look([running(1, replicas(), 400_000)], state=JobState.PAUSED)
    watched.copy(200_000, replicas())
    watched.look([running(1, replicas(), 400_000)])
    watched.now += STILL_SECONDS + 1
    watched.copy(200_000, replicas())
    assert watched.learned.rates().replica_bytes == pytest.approx(200_000)


def test_who_waits_for_a_place_before_anything_comes_is_not_slow() -> None:
    """A leading node has two replicas fetched at a time: others wait, and were taken for ten times as slow."""
    watched = Watched()
    for _ in range(int((STILL_SECONDS - 10) / LOOK)):
        watched.look([running(1, replicas(), 0)])
    watched.copy(200_000, replicas())
    assert watched.learned.rates().replica_bytes == pytest.approx(200_000)


def test_what_pauses_nearly_always_is_not_taken_for_endlessly_fast() -> None:
    watched = Watched()
    watched.copy(10_000, replicas(), config=msgspec.structs.replace(PACED, throttle_rate=100.0))
    assert watched.learned.rates().replica_bytes == pytest.approx(200_000)


def test_the_latest_moves_count_alone() -> None:
    watched = Watched()
    watched.copy(10_000, replicas())
    for _ in range(MOVES):
        watched.copy(100_000, replicas())
    assert watched.learned.rates().replica_bytes == pytest.approx(100_000)


def test_the_rate_of_now_is_that_of_one_rebalance_and_of_the_last_half_minute() -> None:
    lately, move = Lately(), replicas()
    told = [lately.rate(job(), [running(1, move, 1000 * n)], float(n)) for n in range(41)]
    assert told[0] == 0.0 and told[1:] == pytest.approx([1000.0] * 40)
    stands = [lately.rate(job(), [running(1, move, 40_000)], float(n)) for n in range(41, 75)]
    assert stands[9] == pytest.approx(20_000 / 30) and stands[-1] == 0.0
    assert lately.rate(msgspec.structs.replace(job(), id=6), [running(1, move, 900_000)], 75.0) == 0.0
