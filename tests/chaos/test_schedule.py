"""The faults of a chaos run: drawn from the seed alone, all kinds, bounded."""

from collections import Counter
from itertools import islice

from proof.chaos.schedule import KINDS, LONELY, schedule


def rounds(seed: int, count: int = 200):
    return list(islice(schedule(seed), count))


def test_a_seed_is_one_schedule():
    assert rounds(7) == rounds(7)
    assert rounds(7) != rounds(8)


def test_every_kind_comes_early_and_again():
    for seed in range(5):
        first = {round.faults[0].kind for round in rounds(seed, len(KINDS))}
        assert first == set(KINDS)
        counts = Counter(fault.kind for round in rounds(seed, 400) for fault in round.faults)
        assert min(counts.values()) >= 3


def test_faults_are_numbered_bounded_and_some_come_in_pairs():
    made = rounds(3, 300)
    faults = [fault for round in made for fault in round.faults]
    assert [fault.number for fault in faults] == list(range(len(faults)))
    assert all(0.2 <= fault.timeouts <= 12.0 and 0.0 <= fault.amount <= 1.0 for fault in faults)
    assert any(fault.timeouts < 1 for fault in faults) and any(fault.timeouts > 2 for fault in faults)
    pairs = [round.faults for round in made if len(round.faults) == 2]
    assert pairs
    assert not [pair for pair in pairs for fault in pair if fault.kind in LONELY]
    assert all(len(round.faults) in (1, 2) and round.calm > 0 for round in made)
