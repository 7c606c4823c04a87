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
        name="bits-in-another-order",
        breaks="bits that come one by one are put into bytes from the lowest on: what is stored is not what was given",
        edits=(
            Edit(
                "base.dtypes:VectorForm.stored",
                "np.packbits(floats != 0, axis=-1)",
                'np.packbits(floats != 0, axis=-1, bitorder="little")',
            ),
        ),
        sim=True,
        bits=True,
        minutes=1.0,
        tests=("tests/client/test_bits.py::test_what_is_given_is_stored_and_counted",),
    ),
    Mutant(
        name="bits-are-counted-as-if-vectors-were-shorter",
        breaks="a scan takes vectors of bits to be a byte shorter than they are",
        edits=(Edit("shard.segments.bits:differing", "left.shape[1], arrays[2]", "left.shape[1] - 1, arrays[2]"),),
        sim=True,
        bits=True,
        minutes=1.0,
        tests=("tests/client/test_bits.py::test_what_is_given_is_stored_and_counted",),
    ),
    Mutant(
        name="another-type-is-taken-for-the-collections",
        breaks="vectors of another type that have as many bytes are stored as if they were of the collection's",
        edits=(Edit("shard.apply.execute:_check_rows", "command.dtype != spec.dtype or ", ""),),
        tests=("tests/shard/test_dtypes.py::test_a_command_of_another_type_is_refused",),
    ),
)
