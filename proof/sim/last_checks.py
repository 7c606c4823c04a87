"""What clients were told, compared with what every shard's log says, once a run is over."""

from __future__ import annotations

import msgspec

from proof.checkers.replay import check_get
from proof.checkers.scatter import check_by_maps
from proof.checkers.violation import Violation
from proof.sim.shards.truth import Truth
from proof.sim.workload import Workload, value_of


def find_versions(work: Workload, truth: Truth) -> None:
    """Put down which versions the documents of batches got. Raises Violation for one that is in no log."""
    models = truth.models()
    for op in work.in_batches:
        changes = [change for model in models.values() for change in model.history(op.key)]
        found = [document.version for _, document in changes if document and value_of(document.metadata) == op.tag]
        if not found:
            raise Violation("acknowledged means applied", f"#{op.id} put {op.key} {op.tag} is in no log", op.key)
        op.version = min(found)  # a new vector leaves the metadata as it is, and has a later version


def check_reads(work: Workload, truth: Truth, metric: str) -> None:
    """Every search and every get saw what its shards held. Raises Violation."""
    models, maps = truth.models(), truth.maps()
    for seen in work.scatters:
        check_by_maps(models, maps, truth.logs.owned, truth.key, seen, metric)
    for shard, get in work.gets:
        until = truth.logs.owned_until(shard, get.key, get.applied_index, get.latest_index)
        if until is None:
            raise Violation("coverage", f"{get.label} at {get.applied_index}, where it does not own it", get.key)
        check_get(models[shard], msgspec.structs.replace(get, latest_index=until))
