"""How long a plan takes, in words, and by which rates."""

from __future__ import annotations

from collections.abc import Sequence

from needle.routing.copy_rates import CopyRates
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas, size_in_words


def expected_in_words(seconds: float) -> str:
    """How long a plan takes, for people."""
    amount = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else None
    return f"takes about {amount or f'{seconds / 3600:.1f} h'} at this pace"


def rates_in_words(moves: Sequence[Move], rates: CopyRates) -> str:
    """By which rates that is, for people: those that this cluster's own moves have shown, and those that are assumed.
    Only what these moves depend on; "" if that is nothing."""
    shown, assumed = list[str](), list[str]()
    if any(isinstance(move, MoveReplicas) and move.added for move in moves):
        said = f"{size_in_words(round(rates.replica))}/s of a replica"
        (assumed if rates.replica_bytes is None else shown).append(said)
    if any(isinstance(move, MoveRange) for move in moves):
        said = f"{rates.range:.0f} documents/s of key ranges"
        (assumed if rates.range_documents is None else shown).append(said)
    told = f", by what the latest moves copied between pauses: {' and '.join(shown)}" if shown else ""
    if assumed:
        told += (
            f", if it copies {' and '.join(assumed)}: that was measured elsewhere, for no move has shown it here yet"
        )
    return told
