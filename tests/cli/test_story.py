"""The demo's claims can fail: what it checks is noticed when it does not hold."""

from contextlib import nullcontext

import numpy as np
import pytest
from rich.console import Console

from needle.base.errors import DeadlineExceeded, Internal
from needle.base.model import Document, Hit, RaftStatus, ReadMode
from needle.cli.demo import story
from needle.cli.demo.outcome import Failover
from needle.cli.demo.story import Story


class FakeCluster:
    def __init__(self) -> None:
        self.addresses = {"a": "a:1", "b": "b:1", "c": "c:1"}
        self.started: list[str] = []

    def restart(self, node: str) -> None:
        self.started.append(node)

    def check_alive(self) -> None:
        """All alive."""


class FakeClient:
    """Three replicas; `digests` by address; documents that `get_many` finds; hits by turns."""

    def __init__(self, digests: dict[str, str], documents: int, found: set[str], hits: list[list[str]]) -> None:
        self.digests, self.documents, self.found, self.hits = digests, documents, found, hits

    async def node_status(self, address: str, *, digest: bool, timeout: float) -> RaftStatus:
        return RaftStatus(
            node_id=address[0],
            group=1,
            state="Leader" if address == "b:1" else "Follower",
            current_term=2,
            leader="b",
            commit_index=9,
            last_applied=9,
            first_index=1,
            last_index=9,
            peers=[],
            voters=["a", "b", "c"],
            learners=[],
            lease_remaining=0.0,
            leader_changes=1,
            documents=self.documents,
            digest=self.digests[address],
        )

    async def get_many(self, ids: list[str], *, collection: str) -> list[Document]:
        return [Document(id=name, vector=None, metadata=None, version=1) for name in ids if name in self.found]

    async def search(self, vector, k: int, *, mode: ReadMode) -> list[Hit]:
        self.hits.append(self.hits.pop(0))
        return [Hit(id=name, distance=0.5, score=0.5) for name in self.hits[-1]]


EQUAL = dict.fromkeys(("a:1", "b:1", "c:1"), "d1")
WRITES = ["live/1", "live/2"]


def told(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> Story:
    monkeypatch.setattr(story, "READY_SECONDS", 0.2)
    made = Story(FakeCluster(), client, Console(quiet=True))  # type: ignore[arg-type]
    made.outcome.passages = 10
    made.outcome.failover = Failover(
        killed="a",
        new_leader="b",
        term_before=1,
        term_after=2,
        failover_ms=1.0,
        acknowledged_before=1,
        acknowledged_after=1,
        unknown=1,
    )

    async def settled(replicas: int, settle=made._settle) -> list[RaftStatus]:
        return (await settle(3))[:replicas]  # the fake's dead node answers too

    monkeypatch.setattr(made, "_settle", settled)
    return made


@pytest.mark.parametrize(
    ("digests", "documents", "found", "problem"),
    [
        (EQUAL, 12, {"live/1", "live/2"}, nullcontext()),
        (EQUAL, 13, {"live/1", "live/2"}, nullcontext()),  # one write of unknown fate took effect
        (EQUAL, 12, {"live/2"}, pytest.raises(Internal, match="1 acknowledged writes are gone, such as live/1")),
        (EQUAL, 11, {"live/1", "live/2"}, pytest.raises(Internal, match="11 documents, expected 12")),
        (EQUAL, 14, {"live/1", "live/2"}, pytest.raises(Internal, match="14 documents, expected 12")),
        ({**EQUAL, "c:1": "d2"}, 12, set(WRITES), pytest.raises(DeadlineExceeded, match="do not become equal")),
    ],
)
async def test_the_proof_fails_when_it_should(digests, documents, found, problem, monkeypatch) -> None:
    made = told(FakeClient(digests, documents, found, []), monkeypatch)
    with problem:
        await made.prove(WRITES)
        assert made.outcome.proof is not None and made.outcome.proof.documents == documents
        assert made._cluster.started == ["a"]


async def test_replicas_that_disagree_are_noticed(monkeypatch) -> None:
    vector = np.zeros(3, dtype=np.float32)
    hits = [Hit(id="x", distance=0.5, score=0.5)]
    agreeing = told(FakeClient(EQUAL, 0, set(), [["x"]]), monkeypatch)
    assert await agreeing._median_ms(ReadMode.EVENTUAL, vector, hits) >= 0
    disagreeing = told(FakeClient(EQUAL, 0, set(), [["x"], ["x"], ["y"]]), monkeypatch)
    with pytest.raises(Internal, match=r"disagree: \['y'\] and \['x'\]"):
        await disagreeing._median_ms(ReadMode.EVENTUAL, vector, hits)
