"""Bugs in bulk loads: when an entry may name a file, and that it does so once (docs/adr/0119)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_SHARD = "tests/shard/test_bulk.py::"

MUTANTS = (
    Mutant(
        name="a-load-is-applied-without-its-map-check",
        breaks="documents of a load appear in a shard that does not own them any more, or is giving them up",
        edits=(
            Edit("shard.apply.bulk:check_owned", "if fence is not None and (", "if fence is False and ("),
            Edit(
                "server.service.bulk_loads:BulkLoads._ready",
                "if owned.fingerprint(shard) != command.owned:",
                "if not owned:",
            ),
        ),
        tests=(_SHARD + "test_a_load_for_other_ranges_of_keys_is_refused",),
    ),
    Mutant(
        name="what-a-load-brought-is-not-remembered",
        breaks="whoever has not heard the answer, and asks again, is refused as if the load had not been done",
        edits=(Edit("shard.apply.bulk:load_rows", "loaded=command.checksum)", "loaded='')"),),
        sim=True,
        minutes=1.0,
        sharded=True,
        tests=(_SHARD + "test_a_repetition_is_answered_without_the_file_and_another_load_is_refused",),
    ),
    Mutant(
        name="a-loaded-file-is-not-compared-with-its-checksum",
        breaks="a replica whose file was damaged on its way has other documents than the others",
        edits=(
            Edit("shard.bulk.staged:StagedFiles._finish", "!= read_name(name).checksum", "== ''"),
            Edit("shard.bulk.staged:StagedFiles.sound", "== read_name(name).checksum", "!= ''"),
        ),
        tests=(_SHARD + "test_a_file_with_another_checksum_than_its_name_is_refused",),
    ),
    Mutant(
        name="a-load-that-was-taken-counts-as-refused",
        breaks="an archive of the logs has no state behind a bulk load, so no instant after it can be had",
        edits=(Edit("shard.held_collections:HeldCollections.refused_load", "!= command.checksum", "is not None"),),
        tests=("tests/backup/test_archive_loads.py::test_what_was_before_a_load_and_all_behind_the_copy_come_back",),
    ),
    Mutant(
        name="a-load-does-not-wait-for-its-files",
        breaks="a replica that has not got a load's file yet passes its entry over, and lacks its documents",
        edits=(
            Edit(
                "shard.apply.bulk:_await", "staged.awaited = awaited\n    raise FileAwaited(", "raise InvalidArgument("
            ),
        ),
        sim=True,
        minutes=1.0,
        sharded=True,
        tests=(_SHARD + "test_a_replica_without_the_file_changes_nothing_and_goes_on_when_it_is_there",),
    ),
)
