"""Sets of keys as ranges: the algebra against sets of keys, and that equal sets have equal lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.routing.ranges import KeySet, check_ranges, contains, difference, fingerprint, overlap, union
from needle.routing.shard_map import KeyRange, initial_map
from needle.routing.strategy import RANGE

KEYS = [bytes([n]) for n in range(12)]
_ends = st.one_of(st.none(), st.sampled_from(KEYS))
_spans = st.tuples(st.sampled_from([b"", *KEYS]), _ends).filter(lambda span: span[1] is None or span[0] < span[1])
_raw = st.lists(_spans, max_size=4)
_ranges = _raw.map(union)


def members(ranges: list[KeyRange]) -> set[bytes]:
    return {key for key in [b"", *KEYS, *(key + b"\x01" for key in KEYS)] if any(_in(key, span) for span in ranges)}


def _in(key: bytes, span: KeyRange) -> bool:
    return span[0] <= key and (span[1] is None or key < span[1])


@given(_raw, _raw)
def test_union_difference_and_membership_are_those_of_sets(raw: list[KeyRange], other_raw: list[KeyRange]) -> None:
    one, other = union(raw), union(other_raw)
    assert members(one) == members(raw)
    assert members(union(one, other)) == members(one) | members(other)
    assert members(difference(one, other)) == members(one) - members(other)
    assert contains(one, other) == (members(other) <= members(one))
    assert overlap(one, other) == bool(members(one) & members(other))
    keys = KeySet(one)
    assert {key for key in members([(b"", None)]) if key in keys} == members(one)
    for made in (one, union(one, other), difference(one, other)):
        assert made == union(made)
        if made:
            check_ranges("ranges", made)


@given(_ranges, _ranges)
def test_a_shard_that_gives_and_takes_has_the_ranges_of_the_map(moved: list[KeyRange], again: list[KeyRange]) -> None:
    """So that the fingerprint in a shard's log and that of the map agree."""
    now, owned = initial_map(RANGE, 2, boundaries=["\x06"]), {}
    owned = {shard: now.ranges(shard) for shard in (0, 1)}
    for ranges, target in ((moved, 1), (again, 0)):
        if ranges:
            now = now.moved(ranges, target)
            owned[target], owned[1 - target] = union(owned[target], ranges), difference(owned[1 - target], ranges)
    assert owned == {shard: now.ranges(shard) for shard in (0, 1)}
    assert fingerprint(owned[0]) == fingerprint(tuple(now.ranges(0)))


@pytest.mark.parametrize(
    "ranges", [[], [(b"b", b"a")], [(b"a", b"a")], [(b"a", b"b"), (b"b", b"c")], [(b"c", b"d"), (b"a", b"b")]]
)
def test_what_is_not_normal_is_refused(ranges: list[KeyRange]) -> None:
    with pytest.raises(InvalidArgument):
        check_ranges("ranges", ranges)
