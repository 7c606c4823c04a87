"""Whether a quorum is left is told from what the faults of a round do together."""

import pytest

from needle.sim.chaos.injector import Injured, has_quorum


async def heal() -> None: ...


def cut(a: str, b: str) -> Injured:
    return Injured(set(), heal, "", [(a, b), (b, a)])


def without(*names: str) -> Injured:
    return Injured(set(names), heal)


@pytest.mark.parametrize(
    ("names", "hurt", "left"),
    [
        ("abc", [without("a")], True),
        ("abc", [without("a"), without("b")], False),
        ("abc", [without("a"), without("a")], True),
        ("abc", [cut("a", "b")], True),
        ("abc", [without("c"), cut("a", "b")], False),
        ("abc", [without("a"), cut("a", "b")], True),
        ("abcde", [without("e"), cut("a", "b")], True),
        ("abcde", [without("d", "e"), cut("a", "b")], True),
        ("abcde", [without("d", "e"), cut("a", "b"), cut("b", "c"), cut("a", "c")], False),
        ("abcde", [without("c", "d", "e")], False),
    ],
)
def test_has_quorum(names: str, hurt: list[Injured], left: bool) -> None:
    assert has_quorum(names, hurt) is left
