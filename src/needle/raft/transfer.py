"""Leadership transfer (thesis, 3.10): stop taking proposals, let the target catch up, tell it to campaign at once.

Invariant: the lease is given up before TIMEOUT_NOW leaves, for the rest of the term; a transfer never outlives its
term, its deadline or its target's place among the voters.
"""

from __future__ import annotations

from needle.base.errors import TransferFailed, invalid
from needle.base.ids import NodeId
from needle.raft import lease
from needle.raft.messages import NO_LEADER, Message, MessageType
from needle.raft.progress import Progress
from needle.raft.state import FAR, State


def is_under_way(s: State) -> bool:
    return s.transfer_target != NO_LEADER


def check_none(s: State) -> None:
    """Raises TransferFailed (retryable: nothing happened) while leadership is being handed over."""
    if s.transfer_target != NO_LEADER:
        raise TransferFailed(f"leadership is being handed over to {s.transfer_target}", target=s.transfer_target)


def best_target(s: State) -> NodeId | None:
    """The most caught-up other voter, one that answers lately if possible; ties by id. None if there is none."""

    def rank(node: NodeId) -> tuple[bool, int]:
        progress = s.progress[node]
        return s.now - progress.contact <= s.config.election_timeout and progress.recent_active, progress.match

    others = sorted(node for node in s.conf.voters if node != s.id)
    return max(others, key=rank) if others else None


def start(s: State, to: NodeId | None) -> NodeId:
    """Begin handing over to `to`, or to the best voter; returns the target.

    Raises InvalidArgument for a node that is no other voter, TransferFailed if there is none or one is under way.
    """
    target = to if to is not None else s.transfer_target or best_target(s)
    if target is None:
        raise TransferFailed("there is no other voter to hand leadership to")
    if target == s.id or target not in s.conf.voters:
        others = ", ".join(v for v in s.conf.voters if v != s.id)
        raise invalid("to", target, f"another voter ({others or 'there is none'})")
    if s.transfer_target == target:
        return target
    check_none(s)
    s.transfer_target = target
    s.transfer_deadline = s.now + s.config.transfer_timeout
    s.append_wanted = True
    on_progress(s, target, s.progress[target])
    return target


def on_progress(s: State, node: NodeId, progress: Progress) -> None:
    """Called whenever the member has answered: if it is the target and has everything, it may take over."""
    if node == s.transfer_target and progress.match == s.log.last_index():
        send_timeout_now(s, node)


def send_timeout_now(s: State, node: NodeId) -> None:
    lease.suspend(s)
    s.send(Message(MessageType.TIMEOUT_NOW, to=node, frm=s.id, term=s.term))


def hand_over_on_removal(s: State) -> None:
    """This leader is no voter any more: name the successor that has everything, if there is one."""
    target = best_target(s)
    if target is not None and s.progress[target].match == s.log.last_index():
        send_timeout_now(s, target)


def abort(s: State) -> None:
    """Go on as leader. The lease stays suspended if TIMEOUT_NOW may be on its way."""
    s.transfer_target = NO_LEADER
    s.transfer_deadline = FAR


def on_tick(s: State) -> None:
    if s.now >= s.transfer_deadline:
        abort(s)


def on_conf_change(s: State) -> None:
    """A target that is no voter any more cannot take over."""
    if is_under_way(s) and s.transfer_target not in s.conf.voters:
        abort(s)
