"""Bugs in the types of vectors."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

MUTANTS = (
    Mutant(
        name="another-rounding-of-stored-vectors",
        breaks="a type of vectors cuts digits off instead of rounding: what is stored is not what was given",
        edits=(
            Edit("base.dtypes:VectorForm.stored", "floats.astype(self.array)", "(floats * 0.99).astype(self.array)"),
        ),
        sim=True,
        tests=("tests/client/test_dtypes.py::test_what_is_given_is_stored_and_scored_exactly",),
    ),
    Mutant(
        name="stored-vectors-scored-at-any-length",
        breaks="under cosine, int8 and float16 are scored without being divided by their length",
        edits=(
            Edit(
                "base.dtypes:VectorForm.scored",
                "np.where(lengths > 0, lengths, 1)[:, None]",
                "np.ones(len(lengths))[:, None]",
            ),
        ),
        sim=True,
        tests=("tests/client/test_dtypes.py::test_what_is_given_is_stored_and_scored_exactly",),
    ),
    Mutant(
        name="another-type-is-taken-for-the-collections",
        breaks="vectors of another type that have as many bytes are stored as if they were of the collection's",
        edits=(Edit("shard.apply.execute:_check_rows", "command.dtype != spec.dtype or ", ""),),
        tests=("tests/shard/test_dtypes.py::test_a_command_of_another_type_is_refused",),
    ),
)
