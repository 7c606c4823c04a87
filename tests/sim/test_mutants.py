"""The planted bugs still fit the product: a refactoring must not disarm one in silence."""

import inspect
from pathlib import Path

import pytest

from needle.base.errors import StorageError
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.store import DocumentStore
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
