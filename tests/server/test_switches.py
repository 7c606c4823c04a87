"""What a driver measures of switches of key ranges."""

from __future__ import annotations

from needle.server.upkeep.switches import End, Switches


class Watched(Switches):
    def __init__(self) -> None:
        self.at = 0.0
        super().__init__(lambda: self.at)
        self.told: list[tuple[str, float]] = []
        self.on_hold = lambda end, seconds: self.told.append((end, seconds))
        self.on_arrival = lambda seconds: self.told.append(("arrived", seconds))


def test_a_hold_is_measured_from_the_freeze_and_an_arrival_from_the_decision() -> None:
    seen = Watched()
    seen.frozen(7)
    seen.at = 0.5
    seen.frozen(7)  # the same one again
    seen.at = 2.0
    seen.ended(7, End.THAWED)
    seen.frozen(7)
    seen.at = 2.25
    seen.ended(7, End.DECIDED)
    assert seen.decided_for(7) == 0.0 and seen.decided_for(8) == 0.0
    seen.at = 3.25
    seen.ended(7, End.DECIDED)  # told again, after an error
    assert seen.decided_for(7) == 1.0
    seen.arrived(7)
    seen.arrived(7)
    assert seen.told == [("thawed", 2.0), ("decided", 0.25), ("arrived", 1.0)] and seen.decided_for(7) == 0.0


def test_what_another_driver_began_is_not_guessed_and_what_it_drives_is_forgotten() -> None:
    seen = Watched()
    seen.ended(1, End.GIVEN_UP)
    seen.arrived(2)
    assert seen.told == []
    seen.frozen(3)
    seen.ended(4, End.DECIDED)
    seen.keep({5})
    seen.at = 9.0
    seen.ended(3, End.THAWED)
    seen.arrived(4)
    assert seen.told == [] and seen.decided_for(4) == 0.0


def test_steps_that_are_taken_again_after_the_arrival_count_once() -> None:
    """The catalog was not told in time: the driver goes through the steps of the state again."""
    seen = Watched()
    seen.frozen(7)
    seen.ended(7, End.DECIDED)
    seen.at = 1.0
    seen.arrived(7)
    for _ in range(2):
        seen.keep({7})
        seen.frozen(7)
        seen.ended(7, End.DECIDED)
        seen.at += 1.0
        seen.arrived(7)
    assert seen.told == [("decided", 0.0), ("arrived", 1.0)] and seen.decided_for(7) == 0.0
    seen.keep(())
    assert not seen._arrived, "what is over is forgotten"
