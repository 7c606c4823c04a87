"""The interpreter of tests/raft/traces/*.txt: what a command does, and how to read its output.

A trace is a sentence that names the rule, then commands (`> ...`), each followed by what the cores do about it (lines
that begin with two spaces). Notes stand between them, from the first column on.

How to read the output: `3/t2` is the log entry of index 3 and term 2. What is indented below a line happens because of
it: below `2 gets ...` the reaction, below `2 fsync ...` the messages that leave only once that is durable. All others
leave at once. `r5` is a confirmation round (raft/rounds.py). A follower `of 1` knows 1 as its leader.

Commands (a tick is a heartbeat interval; an election timeout is 10; node i's random timeout is 10 + i):
  nodes 3 learners=4 spares=5 KEY=VALUE   a new world: voters 1..3, a learner, one of no group; CoreConfig
  disk 1 log=1,2 term=2 vote=1 commit=1 applied=1     restart a node with this on its disk (log: the entries' terms)
  tick 3 | run 3                          time passes: messages wait | messages arrive at once
  deliver 1->2 KIND | deliver             what was sent until now arrives: of one link and kind | all
  stabilize                               messages arrive until none is sent any more
  lose 1->2 KIND | again 1->2             drop those that wait | the last message that arrived there, once more
  isolate 3 | heal                        what is sent from or to 3 from now on is lost
  pause 3 | resume 3                      the process does not run: neither time nor messages come in
  crash 3 | restart 3                     a write under way is lost, everything durable stays
  slow-disk 1, fsync 1                    writes end only when told; without: at once
  slow-apply 1, apply 1                   the same for applying
  campaign 1 | quiesce 1 | retire 1       force an election | maintenance | this replica lost what others count on
  propose 1 x y | read 1 7 | lease 1      append | ReadIndex with context 7 | what a leased read may see now
  transfer 1 2                            hand leadership over to 2, or to the best
  members 1 voters=1,2 learners=3         change the membership
  compact 1                               drop the applied log
  snapshot 1->3 | snapshot-failed 1->3    the snapshot that 1 wanted for 3 is made | is not
  unreachable 1->2 | disconnect 2->1      1's transport lost messages to 2 | 2 ended its connection to 1
  forge 2->1 append term=3 after=1/t1 entries=2/t3 commit=1   a message that nobody sent (fields of Message)
  status | progress 1 | log 1             where every node is | what a leader knows of its members | a log
  quietly COMMAND                         without its output, unless it is refused
"""

from __future__ import annotations

from needle.base.errors import NeedleError
from needle.raft.config import CoreConfig
from needle.raft.messages import ConfChange, ConfState, Entry, HardState, Message, MessageType, SnapshotMeta
from raft.harness import Disk
from raft.trace_words import message_words, position
from raft.trace_world import Peer, World

COMMAND, OUTPUT = "> ", "  "
STEPS_MAX = 10_000
_TIMES = {"election_timeout": 10.0, "heartbeat_interval": 1.0, "clock_error_max": 0.01, "lease_margin": 0.2}


class Script(World):
    """See the module. `run` takes one command and returns the lines of its output."""

    def run(self, command: str) -> list[str]:
        self.lines = []
        quiet = command.startswith("quietly ")
        name, *words = command.removeprefix("quietly ").split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        try:
            getattr(self, "do_" + name.replace("-", "_"))(*(word for word in words if "=" not in word), **options)
        except NeedleError as error:
            self.say(f"refused: {error}")
            return self.lines[-1:] if quiet else self.lines
        return [] if quiet else self.lines

    # --- commands: the world ------------------------------------------------------------------------------------
    def do_nodes(self, voters: str, learners: str = "", spares: str = "", **settings: str) -> None:
        self.reset()
        ids = [str(i + 1) for i in range(int(voters))]
        conf = ConfState(tuple(ids), tuple(learners.split(",")) if learners else ())
        values = _TIMES | {key: float(value) if "." in value else int(value) for key, value in settings.items()}
        for node in [*ids, *conf.learners, *filter(None, spares.split(","))]:
            self.peers[node] = Peer(CoreConfig(node_id=node, **values), conf if node not in spares else ConfState())  # type: ignore[arg-type]
            self.peers[node].start(self.now)

    def do_disk(
        self, node: str, log: str = "", term: str = "0", vote: str = "", commit: str = "0", applied: str = "0"
    ) -> None:
        n = self.peers[node]
        n.raft = None
        n.disk = Disk(conf=n.disk.conf, hard_state=HardState(int(term), vote, int(commit)), applied=int(applied))
        terms = map(int, filter(None, log.split(",")))
        n.disk.storage.write(tuple(Entry(i, t, 0, b"%c" % (96 + i)) for i, t in enumerate(terms, 1)))
        n.start(self.now)

    def do_tick(self, ticks: str, *, deliver: bool = False) -> None:
        end = self.now + float(ticks)
        for _ in range(STEPS_MAX):
            if deliver:
                self.do_stabilize()
            due, node = min((max(n.core.next_deadline(), self.now), n.id) for n in self.peers.values() if n.runs())
            if due > end:
                self.now = end
                return
            self.now = due
            n, before = self.peers[node], len(self.lines) + 1
            with self.below(f"at tick {round(due, 2):g}:"):
                n.core.tick(due)
                self.pump(n)
            if len(self.lines) == before:
                del self.lines[-1]
        raise AssertionError("time does not pass")

    def do_run(self, ticks: str) -> None:
        self.do_tick(ticks, deliver=True)

    def do_deliver(self, link: str = "", kind: str = "") -> None:
        for m in self.waiting(link, kind):
            self.wire.remove(m)
            self.receive(m)

    def do_stabilize(self) -> None:
        for _ in range(STEPS_MAX):
            waiting = self.waiting()
            if not waiting:
                return
            self.wire.remove(waiting[0])
            self.receive(waiting[0])
        raise AssertionError("the messages do not end")

    def do_lose(self, link: str, kind: str = "") -> None:
        for m in self.waiting(link, kind):
            self.wire.remove(m)
            self.say(f"lost: {message_words(m)}")

    def do_again(self, link: str) -> None:
        self.receive(self.arrived[link])

    def do_isolate(self, *nodes: str) -> None:
        self.isolated.update(nodes)

    def do_heal(self) -> None:
        self.isolated.clear()

    def do_pause(self, node: str) -> None:
        self.peers[node].is_paused = True

    def do_resume(self, node: str) -> None:
        self.peers[node].is_paused = False

    def do_crash(self, node: str) -> None:
        self.peers[node].raft = None

    def do_restart(self, node: str) -> None:
        self.peers[node].start(self.now)
        self.do_status(node)

    def do_slow_disk(self, node: str) -> None:
        self.peers[node].has_slow_disk = True

    def do_slow_apply(self, node: str) -> None:
        self.peers[node].has_slow_apply = True

    def do_fsync(self, node: str) -> None:
        n = self.peers[node]
        assert n.writing is not None, f"{node} writes nothing"
        self.finish_write(n, n.writing)
        self.pump(n)

    def do_apply(self, node: str) -> None:
        self.finish_apply(self.peers[node])
        self.pump(self.peers[node])

    def do_status(self, *nodes: str) -> None:
        for node in nodes or self.peers:
            n = self.peers[node]
            if n.raft is None:
                self.say(f"{node} is down")
                continue
            core = n.core
            at = f"last {core.last_index} commit {core.commit} applied {core.applied}"
            self.say(f"{node} {n.shown['role']} vote {core.vote or 'none'}, {at}")

    def do_progress(self, node: str) -> None:
        for member, p in self.peers[node].core.progress().items():
            if member != node:
                words = f"{p.state.value} match {p.match}, next {p.next}, {p.inflight_bytes} bytes in flight"
                self.say(f"{member} {words}{' paused' if p.paused else ''}")

    def do_log(self, node: str) -> None:
        core, storage = self.peers[node].core, self.peers[node].disk.storage
        start = f"{storage.base_index}/t{storage.base_term} and then " if storage.base_index else ""
        terms = [f"{i}/t{core.term_at(i)}" for i in range(storage.first_index(), core.last_index + 1)]
        self.say(f"{node} has {start}{' '.join(terms) or 'nothing'}")

    # --- commands: requests to a core ---------------------------------------------------------------------------
    def do_campaign(self, node: str) -> None:
        self.peers[node].core.campaign(self.now)
        self.pump(self.peers[node])

    def do_quiesce(self, node: str) -> None:
        self.peers[node].core.set_quiesced(True)

    def do_retire(self, node: str) -> None:
        self.peers[node].core.retire(self.now)
        self.pump(self.peers[node])

    def do_propose(self, node: str, *data: str) -> None:
        for text in data:
            try:
                index, term = self.peers[node].core.propose(text.encode(), self.now)
            except NeedleError as error:
                self.say(f"{text} is refused: {error}")
            else:
                self.say(f"{node} appends {index}/t{term} {text}")
        self.pump(self.peers[node])

    def do_read(self, node: str, *contexts: str) -> None:
        for context in contexts:
            self.peers[node].core.read_index(int(context), self.now)
        self.pump(self.peers[node])

    def do_lease(self, node: str) -> None:
        core = self.peers[node].core
        index, left = core.read_lease(self.now), round(core.lease_remaining(self.now), 2)
        self.say(f"{node} has no lease" if index is None else f"{node} may answer at {index} for {left:g} ticks")

    def do_transfer(self, node: str, to: str | None = None) -> None:
        target = self.peers[node].core.transfer_leadership(to, self.now)
        self.say(f"{node} hands over to {target}")
        self.pump(self.peers[node])

    def do_members(self, node: str, voters: str, learners: str = "") -> None:
        change = ConfChange(tuple(voters.split(",")), tuple(filter(None, learners.split(","))))
        index, term = self.peers[node].core.propose_conf_change(change, self.now)
        self.say(f"{node} appends {index}/t{term}")
        self.pump(self.peers[node])

    def do_compact(self, node: str) -> None:
        disk = self.peers[node].disk
        disk.storage.compact(disk.applied)

    def do_snapshot(self, link: str) -> None:
        node, to = link.split("->")
        n = self.peers[node]
        term = n.disk.storage.term(n.core.applied)
        n.core.send_snapshot(to, SnapshotMeta(n.core.applied, term, n.core.conf), self.now)
        self.pump(n)

    def do_snapshot_failed(self, link: str) -> None:
        node, to = link.split("->")
        self.peers[node].core.report_snapshot_failed(to, self.now)
        self.pump(self.peers[node])

    def do_unreachable(self, link: str) -> None:
        node, to = link.split("->")
        self.peers[node].core.report_unreachable(to, self.now)
        self.pump(self.peers[node])

    def do_disconnect(self, link: str) -> None:
        frm, node = link.split("->")
        self.peers[node].core.report_disconnected(frm, self.now)
        self.pump(self.peers[node])

    def do_forge(self, link: str, kind: str, **fields: str) -> None:
        frm, to = link.split("->")
        values: dict[str, object] = {}
        for name, text in fields.items():
            if name == "after":
                values["index"], values["log_term"] = position(text)
            elif name == "entries":
                places = map(position, text.split(","))
                values[name] = tuple(Entry(i, t, 0, b"%c" % (96 + i)) for i, t in places)
            elif name == "snapshot":
                place, _, voters = text.partition(":")
                conf = ConfState(tuple(voters.split(","))) if voters else self.peers[to].core.conf
                values[name] = SnapshotMeta(*position(place), conf)
            else:
                values[name] = int(text)
        kinds = {
            k.name.lower().replace("_resp", "-ok").replace("pre_", "pre").replace("_", "-"): k for k in MessageType
        }
        self.receive(Message(kinds[kind], to=to, frm=frm, **values))  # type: ignore[arg-type]
