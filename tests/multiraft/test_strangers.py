"""What a node keeps for those of whom it does not know yet who they are."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from needle.base.errors import ConnectionLost
from needle.multiraft.codec import Frame
from needle.multiraft.lives import HELD_BY_ALL_BYTES_MAX, HELD_BYTES_MAX, PEERS_MAX, Lives


class Host:
    """Whatever it should do it does later."""

    node_id = "me"
    stopped = False

    def __init__(self) -> None:
        self.clock = SimpleNamespace(monotonic=lambda: 0.0)
        self.later: list[Coroutine[Any, Any, None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.later.append(work)


class Silent:
    """Nobody can be asked."""

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        raise ConnectionLost(f"{node} is not there")


async def test_frames_of_many_names_that_wait_are_bounded_together_and_given_up() -> None:
    host = Host()
    store = SimpleNamespace(identity=SimpleNamespace(life=SimpleNamespace(nonce=1)), peers={})
    lives = Lives(cast(Any, host), cast(Any, store), cast(Any, Silent()), dict)
    for number in range(PEERS_MAX + 10):
        for _ in range(3):
            assert not lives.admits(f"stranger-{number}", Frame(7, 0, []), HELD_BYTES_MAX // 2)
    waiting = [peer.held_bytes for peer in lives._peers.values()]
    assert max(waiting) <= HELD_BYTES_MAX
    assert 0 < sum(waiting) <= HELD_BY_ALL_BYTES_MAX
    for work in host.later:
        await work
    assert not lives.admits("stranger-0", Frame(7, 0, []), HELD_BYTES_MAX)
    assert [peer.held_bytes for peer in lives._peers.values()] == [HELD_BYTES_MAX], "there is room again"
    for work in host.later[PEERS_MAX:]:
        work.close()


async def test_a_peer_that_is_away_while_frames_come_in_its_name_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two things are said of it in turn, and neither makes the other news."""
    caplog.set_level(logging.INFO, "needle.multiraft")
    host = Host()
    store = SimpleNamespace(identity=SimpleNamespace(life=SimpleNamespace(nonce=1)), peers={})
    lives = Lives(cast(Any, host), cast(Any, store), cast(Any, Silent()), dict)
    peer = lives._peer("known")
    assert peer is not None
    peer.talking = 5
    for _ in range(10):
        assert not lives.admits("known", Frame(7, 0, []), 10)
        await host.later.pop()
    assert len(caplog.messages) == 2, caplog.messages


async def test_many_strangers_leave_a_place_for_peers_that_are_remembered() -> None:
    """After a start nobody has spoken yet: who comes first must not keep the cluster's own nodes out."""
    host = Host()
    store = SimpleNamespace(identity=SimpleNamespace(life=SimpleNamespace(nonce=1)), peers={"node-2": None})
    lives = Lives(cast(Any, host), cast(Any, store), cast(Any, Silent()), dict)
    for number in range(PEERS_MAX):
        lives.admits(f"stranger-{number}", Frame(7, 0, []), 10)
    lives.admits("node-2", Frame(7, 0, []), 10)
    lives.admits("one-more", Frame(7, 0, []), 10)
    assert "node-2" in lives._peers and "one-more" not in lives._peers
    for work in host.later:
        work.close()
