"""The planted bugs still fit the product: a refactoring must not disarm one in silence."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from needle.base.errors import StorageError
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.store import DocumentStore
from proof.mutants import simulated
from proof.mutants.catalog import MUTANTS
from proof.mutants.planting import Edit, Mutant, PlantingFailed, check_plantable, plant


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_can_be_planted(name: str) -> None:
    check_plantable(MUTANTS[name])


def test_a_bug_that_does_not_fit_is_refused() -> None:
    gone = Mutant(name="gone", breaks="", edits=(Edit("multiraft.host:Host.submit", "no such piece", "pass"),))
    with pytest.raises(PlantingFailed, match="0 times, not once"):
        check_plantable(gone)


def test_a_decorated_function_gets_the_bug_too(tmp_path: Path) -> None:
    store = DocumentStore(str(tmp_path), ReplicaDisk(), lambda _: None, 1)
    reading = inspect.unwrap(DocumentStore.reading)
    sound = reading.__code__
    edits = (Edit("shard.documents.store:DocumentStore.reading", "self.writer.save()", "self.writer.close()"),)
    try:
        plant(Mutant(name="closes", breaks="", edits=edits))
        with pytest.raises(StorageError), store.reading():
            store.writer.checkpoint()
    finally:
        reading.__code__ = sound
        store.close()


def test_a_busy_machine_is_no_sighting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails by the processor time of a callback shows only a bug that is about it."""
    checkers = iter(["event loop", "", "search shape"] * 2)

    def run(spec: object) -> tuple[object, list[str]]:
        checker = next(checkers)
        return SimpleNamespace(checker=checker, failure=f"{checker}: so" if checker else None), []

    monkeypatch.setattr(simulated, "run", run)
    about = Mutant(name="a", breaks="", edits=(), sim=True)
    assert simulated.hunt(about, 5) == simulated.Sighting(3, "search shape", "search shape: so")
    slow = msgspec.structs.replace(about, stalls=True)
    assert simulated.hunt(slow, 5) == simulated.Sighting(1, "event loop", "event loop: so")


def test_only_runs_that_can_show_it_are_hunted() -> None:
    of_bits = Mutant(name="a", breaks="", edits=(), sim=True, bits=True)
    seeds = [seed for seed in range(1, 60) if simulated.shows(of_bits, simulated.spec_of(of_bits, seed))]
    assert 2 <= len(seeds) <= 20
    plain = Mutant(name="a", breaks="", edits=(), sim=True)
    assert all(simulated.shows(plain, simulated.spec_of(plain, seed)) for seed in range(1, 60))
