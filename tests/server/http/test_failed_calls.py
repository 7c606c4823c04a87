"""What is told of a call that fails by a bug, and what a search costs a key."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.door import Idle, ask, request, serving
from needle.base.errors import Internal, InvalidArgument, NeedleError
from needle.base.model import SearchRequest
from needle.client.narrowed import Narrow, search_request
from needle.protocol.calls import SEARCH, Freshness, SearchCall
from needle.server.http import bodies, hybrid_bodies
from needle.server.http.bodies import Body
from needle.server.http.call import Call
from needle.server.http.metered import documents_of
from needle.server.http.routes import Route
from needle.server.service import methods


class Given(Body, frozen=True, kw_only=True):
    """Which error."""

    kind: str = ""


async def fail(call: Call) -> int:
    if call.body.kind:
        raise InvalidArgument("no", field="kind")
    raise ZeroDivisionError


class Node(Idle):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[NeedleError | None] = []
        self.observed: list[object] = []
        self.audit = SimpleNamespace(note=lambda door, call, error, **more: self.noted.append(error))

    def observe(self, what: str, seconds: float, error: object) -> None:
        self.observed.append(error)


@pytest.mark.parametrize(("body", "status", "kind"), [(b"{}", 500, Internal), (b'{"kind":"x"}', 400, InvalidArgument)])
async def test_an_administrators_call_that_fails_is_written_down(body: bytes, status: int, kind: type[Any]) -> None:
    """It may have had an effect."""
    node = Node()
    async with serving([Route("POST", "/v1/fail", fail, "", Given, int, "admin")], node) as server:
        assert (await ask(server, request("POST", "/v1/fail", body)))[0] == status
    assert [type(error) for error in node.noted] == [kind]
    assert [type(error) for error in node.observed] == [kind]


def test_what_a_search_passes_over_costs_as_much_as_what_it_shows() -> None:
    one = bodies.Search(vector=[1.0], k=2, offset=9000)
    many = bodies.SearchMany(vectors=[[1.0], [2.0]], k=2, offset=10)
    texts = bodies.SearchMany(texts=["a", "b"], k=2, offset=10)
    both = hybrid_bodies.HybridSearch(keywords="a", vector=[1.0], k=2, pool=150)
    assert documents_of({}, one, bodies.Hits(hits=[], applied_index={}, epoch=1)) == 9002
    for asked in (many, texts):
        assert documents_of({}, asked, bodies.ManyHits(results=[[], []])) == 24
    assert documents_of({}, both, bodies.Hits(hits=[], applied_index={}, epoch=1)) == 300


@pytest.mark.parametrize(
    ("more", "documents"),
    [
        ({}, 3),
        ({"group_by": "a", "group_size": 100}, 300),
        ({"diversify": 0.5, "pool": 200}, 200),
        ({"diversify": 0.5}, 100),
        ({"diversify": 0.0, "k": 100}, 404),
    ],
)
def test_a_search_costs_what_it_looks_at_through_both_doors(more: dict[str, Any], documents: int) -> None:
    """Of 100 groups of 100 documents one hundredth was paid, and of what is chosen from a pool only what was chosen."""
    body = bodies.Search(**{"vector": [1.0], "k": 2, "offset": 1, **more})
    assert documents_of({}, body, bodies.Hits(hits=[], applied_index={}, epoch=1)) == documents
    said = {name: getattr(body, name) for name in ("group_by", "group_size", "diversify", "pool")}
    narrow = Narrow(offset=1, **said)
    request = search_request([1.0], body.k, None, "c", True, False, False, 0, narrow=narrow)
    call = SearchCall(group=1, request=request, freshness=Freshness())
    assert methods.documents_of(SEARCH, call, None) == documents


def test_nobody_is_paid_for_groups_that_were_not_asked_for() -> None:
    request = SearchRequest(collection="c", vector=b"", k=3, group_size=-1_000_000)
    assert methods.documents_of(SEARCH, SearchCall(group=1, request=request, freshness=Freshness()), None) == 3
