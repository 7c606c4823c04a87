"""Who may come in: keys, roles, and what every method needs, tried with each role."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest

from needle.base.access import (
    ADMIN,
    KEY_BYTES,
    MONITOR,
    NOBODY,
    NODE,
    READER,
    ROLES,
    WRITER,
    Identity,
    KeyInfo,
    Role,
    check_new_key_name,
    digest_of,
    new_key,
    rank_of,
)
from needle.base.config import Limits
from needle.base.errors import Forbidden, InvalidArgument, NeedleError, TooManyRequests, Unauthenticated, UnknownMethod
from needle.base.model import CollectionSpec, SearchRequest
from needle.base.rates import Rates
from needle.base.versions import KNOWN
from needle.protocol import calls, commands
from needle.protocol.bounds import BY_METHOD, bound_call, bound_command
from needle.protocol.calls import CollectionsAnswer, CollectionsCall, Freshness, SearchCall
from needle.protocol.peer_calls import TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.topology import AliasInfo, CollectionInfo, Topology
from needle.routing.topology_changes import FORM, History, Summed, changed
from needle.server.access import NO_KEY, WRONG_KEY, Access
from needle.server.service.dispatch import Service
from needle.server.service.methods import NEEDS, judge_call, told

KEY = new_key(bytes(range(KEY_BYTES)))


def info(name: str = "k", key: str = KEY, role: Role = Role.READER, *collections: str) -> KeyInfo:
    return KeyInfo(name=name, digest=digest_of(key), role=role, collections=collections or None)


def access(*keys: KeyInfo, required: bool = True) -> Access:
    made = Access(required)
    made.follow(keys)
    return made


# --- keys ------------------------------------------------------------------------------------------------------------
def test_a_key_is_256_bits_and_only_its_hash_is_kept() -> None:
    assert KEY.startswith("ndl_")
    assert len(KEY) == len("ndl_") + 43
    assert digest_of(KEY) == hashlib.sha256(KEY.encode()).digest()
    assert access(info()).of_key(KEY).rank == READER


@pytest.mark.parametrize("name", ["{}", "shop.{}"])
def test_a_key_is_no_name_of_a_key(name: str) -> None:
    """`needle keys create ndl_...` made one, whose name everybody is shown."""
    key = new_key(bytes(range(KEY_BYTES)))
    with pytest.raises(InvalidArgument, match="not a key itself") as raised:
        check_new_key_name(name.format(key))
    assert key[:8] not in str(raised.value)
    assert check_new_key_name("ndl_of-the-shop") == "ndl_of-the-shop"


def test_a_wrong_key_is_told_nothing_that_depends_on_the_keys() -> None:
    for made in (access(), access(info())):
        for wrong in ("", "k", KEY[:-1], KEY + "x", KEY.lower(), "\ud800"):
            with pytest.raises(Unauthenticated) as refused:
                made.of_key(wrong)
            assert refused.value.message == WRONG_KEY


@pytest.mark.parametrize("same", [4, 8, 16, 31])
def test_a_key_whose_hash_begins_alike_is_another_key(same: int) -> None:
    digest = digest_of(KEY)
    other = digest[:same] + bytes(byte ^ 1 for byte in digest[same:])
    with pytest.raises(Unauthenticated):
        access(KeyInfo("near", other, Role.ADMIN)).of_key(KEY)


def test_a_revoked_key_opens_nothing_more_also_where_it_came_in_before() -> None:
    made = access(info(), info("other", "other", Role.WRITER))
    caller, other = made.of_key(KEY), made.of_key("other")
    made.follow((info("other", "other", Role.WRITER),))
    assert (caller.rank, other.rank) == (NOBODY, WRITER)
    assert made.of_key("other") is other
    with pytest.raises(Unauthenticated):
        made.of_key(KEY)
    made.follow((info(role=Role.ADMIN), info("other", "other", Role.WRITER)))  # the same key made again is a new one
    assert caller.rank == NOBODY
    assert made.of_key(KEY).rank == ADMIN


def test_what_a_key_may_do_is_never_changed_behind_its_connections() -> None:
    made = access(info(role=Role.ADMIN))
    caller = made.of_key(KEY)
    made.follow((info(),))
    assert (caller.rank, made.of_key(KEY).rank) == (NOBODY, READER)


def test_rates_change_for_connections_that_are_open() -> None:
    key = info()
    made = access(key)
    who = made.of_key(KEY)
    assert (who.meter, list(made.meters())) == (None, [])
    made.follow((msgspec.structs.replace(key, rates=Rates(requests=1)),))
    assert made.of_key(KEY) is who
    assert who.rank == READER
    meter = who.meter
    assert meter is not None
    meter.admit(0.0)
    with pytest.raises(TooManyRequests):
        meter.admit(0.0)
    # What else is new of the cluster's keys changes nothing of what is owed.
    made.follow((msgspec.structs.replace(key, rates=Rates(requests=1)), info("other", "other")))
    with pytest.raises(TooManyRequests):
        meter.admit(0.0)
    assert [(name, one.refused["requests"]) for name, one in made.meters()] == [("k", 2)]
    made.follow((key,))
    assert made.of_key(KEY).meter is None


def test_who_is_admitted_with_and_without_keys_required() -> None:
    required, open_ = access(info()), access(info(), required=False)
    assert required.admit("", KEY, False).rank == READER
    assert open_.admit("n2", KEY, False).rank == READER  # a name gives nobody more than the key
    assert required.admit("n2", "", True).rank == open_.admit("n2", "", True).rank == NODE
    for node, why in (("n2", "cluster_secret"), ("", "API key")):
        assert open_.admit(node, "", False).rank == NODE
        with pytest.raises(Unauthenticated, match=why):
            required.admit(node, "", False)
    for made in (required, open_):
        with pytest.raises(Unauthenticated):
            made.admit("", "wrong", False)


# --- methods ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def service() -> Service:
    raft: list[Any] = []
    engine = SimpleNamespace(on_call=lambda *_: None, on_raft=lambda *_: raft.append(_))
    node = SimpleNamespace(
        node_id="n1",
        host=SimpleNamespace(disconnected=lambda _: None, engine=engine),
        heard_from=lambda _: None,
        ports=SimpleNamespace(rng=None, audit=None, search_pool=None, spent=None),
        coordinator=None,
        config=SimpleNamespace(log=SimpleNamespace(slow_request_seconds=0.0), limits=Limits()),
        topology=Topology(),
        now=lambda: 0.0,
        observe=lambda *_: None,
    )
    made = Service(node)  # type: ignore[arg-type]
    made.raft = raft  # type: ignore[attr-defined]
    return made


def caller(rank: int, *collections: str) -> Any:
    identity = Identity(ROLES[rank], rank, frozenset(collections) or None)
    return SimpleNamespace(node_id="n2" if rank == NODE else "", identity=identity, knows=KNOWN)


def test_every_method_has_a_row_in_the_table(service: Service) -> None:
    from needle.multiraft.inbound import CALL_METHODS

    assert NEEDS.keys() == service._methods.keys() | set(CALL_METHODS)
    assert all(READER <= needs.rank <= NODE for needs in NEEDS.values())


@pytest.mark.parametrize("rank", range(NODE + 1))
@pytest.mark.parametrize("method", sorted(NEEDS))
async def test_each_role_reaches_the_methods_that_it_may_call(service: Service, method: str, rank: int) -> None:
    peer = caller(rank)
    try:
        answer: Any = service.on_request(peer, method, b"\xc1")
        if answer is not None:
            await answer
    except (Unauthenticated, Forbidden) as refused:
        assert rank < NEEDS[method].rank
        assert isinstance(refused, Unauthenticated) == (rank == NOBODY)
    except NeedleError as error:
        assert error.details["field"] == "body"  # it was read, and is no message
        assert rank >= NEEDS[method].rank
    else:
        assert rank >= NEEDS[method].rank


def test_a_method_without_a_row_is_answered_to_nobody(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NEEDS, calls.COUNT)
    for rank in range(NODE + 1):
        with pytest.raises(UnknownMethod):
            service.on_request(caller(rank), calls.COUNT, b"")


@pytest.mark.parametrize("rank", range(NODE + 1))
def test_raft_messages_are_taken_from_nodes_only(service: Service, rank: int) -> None:
    peer = caller(rank)
    peer.node_id = "n2"
    service.on_oneway(peer, b"message")
    assert bool(service.raft) == (rank == NODE)  # type: ignore[attr-defined]


# --- keys for some documents -----------------------------------------------------------------------------------------
def test_every_method_that_a_bound_key_reaches_is_bound() -> None:
    """A new one without a row in protocol.bounds is refused, and fails here."""
    reached = {method for method, needs in NEEDS.items() if needs.rank < ADMIN and needs.about != "the whole cluster"}
    assert reached == BY_METHOD.keys()


def test_every_command_that_writes_documents_takes_a_bound() -> None:
    bound = commands.Bound(b"{}", 4)
    taking = {kind for kind in get_args(commands.Command) if "bound" in kind.__struct_fields__}
    assert taking == set(get_args(commands.OfDocuments))
    others = (
        commands.CreateCollection(CollectionSpec(name="a", dimensions=2)),
        commands.DropCollection("a"),
        commands.Expire("a", 1, 1),
        commands.PublishSegment(1, 0, 1, 2, 3, ""),
    )
    for command in others:
        with pytest.raises(Forbidden):
            bound_command(command, bound)
    with pytest.raises(Forbidden):
        bound_command(commands.Once(commands.Asked(b"", b""), 1, commands.Delete("a", ["x"])), bound)
    assert set(commands.DOCUMENT_WRITES) == taking
    writes = {kind for kind in get_args(commands.Command) if "session" in kind.__struct_fields__}
    assert writes == taking | {commands.CreateCollection, commands.DropCollection}
    assert bound_command(commands.OpenSession(1, 9), bound) == commands.OpenSession(1, 4)


@pytest.mark.parametrize("method", sorted(NEEDS))
def test_a_bound_key_may_ask_nothing_about_the_whole_cluster(method: str) -> None:
    who = Identity("t", WRITER, None, b'{"tenant":"a"}', 4)
    if NEEDS[method].about == "the whole cluster":
        with pytest.raises(Forbidden, match="some only"):
            judge_call(who, method, SimpleNamespace(), TOPOLOGY_NOW)
        with pytest.raises(Forbidden, match="some only"):
            bound_call(method, SimpleNamespace(), commands.Bound(b"{}"))


def test_what_a_caller_says_of_its_bound_counts_for_nothing() -> None:
    bound = commands.Bound(b'{"tenant":"a"}', 4)
    insert = commands.Insert("a", ["x"], b"", [b""], bound=commands.Bound(b"{}", 7))
    made = bound_call(calls.WRITE, write(insert), bound)
    assert commands.decode(made.command).bound == bound  # type: ignore[union-attr]
    for owner, same in ((4, True), (5, False)):  # the key of another tenant's request can be guessed
        said = msgspec.structs.replace(write(insert), asked=commands.Asked(b"k" * 16, b"r" * 16))
        made = [bound_call(calls.WRITE, said, commands.Bound(b"{}", one)).asked for one in (4, owner)]
        assert (made[0] == made[1]) == same
        assert len(made[0].key) == 16
        assert made[0] != said.asked
    asked = msgspec.structs.replace(search("a", 3), request=SearchRequest(collection="a", vector=b"", k=1, bound=b"{}"))
    assert bound_call(calls.SEARCH, asked, bound).request.bound == bound.filter


def test_a_bound_key_hears_of_itself() -> None:
    key = KeyInfo("t", digest_of("t"), Role.WRITER, None, 4, b'{"tenant":"a"}')
    now = msgspec.structs.replace(TOPOLOGY_NOW, keys=(*TOPOLOGY_NOW.keys, key))
    heard = now.told_to(Identity("t", WRITER, None, key.filter, 4))
    assert heard.keys == (msgspec.structs.replace(key, digest=b""),)
    assert heard.own_key == heard.keys[0]
    assert now.own_key is None
    assert now.told_to(Identity("x", WRITER)).keys == ()


# --- keys for some collections ---------------------------------------------------------------------------------------
TOPOLOGY_NOW = Topology(
    version=9,
    collections=tuple(
        CollectionInfo(id=n, spec=CollectionSpec(name=name, dimensions=2)) for n, name in enumerate(("a", "b"), 4)
    ),
    aliases=(AliasInfo("to-a", "a"), AliasInfo("to-b", "b")),
    keys=(info(),),
)


def search(collection: str, epoch: int) -> SearchCall:
    return SearchCall(1, SearchRequest(collection=collection, vector=b"", k=1), Freshness(), epoch)


def write(command: commands.Command, epoch: int = 0) -> calls.WriteCall:
    return calls.WriteCall(1, commands.encode(command), 1.0, epoch)


@pytest.mark.parametrize(
    ("collection", "epoch", "allowed"),
    [
        ("a", 0, True),
        ("to-a", 0, True),
        ("a@4", 3, True),
        ("b", 0, False),
        ("to-b", 0, False),
        ("b@5", 3, False),
        ("nowhere", 0, False),
        ("a@4", 0, False),
        ("@a", 3, False),
        ("b@a@4", 3, False),
    ],
)
def test_a_key_for_some_collections_reaches_no_others(collection: str, epoch: int, allowed: bool) -> None:
    who = caller(WRITER, "a").identity
    insert = commands.Insert(collection=collection, ids=["x"], vectors=b"", metadata=[b""])
    for method, call in ((calls.SEARCH, search(collection, epoch)), (calls.WRITE, write(insert, epoch))):
        if allowed:
            judge_call(who, method, call, TOPOLOGY_NOW)
        else:
            with pytest.raises(Forbidden, match="for a only"):
                judge_call(who, method, call, TOPOLOGY_NOW)


@pytest.mark.parametrize("alias", ["to-a", "a"])
def test_what_was_judged_of_an_alias_is_what_is_asked_for(alias: str) -> None:
    """Whoever routes the call looks it up again, by then it may lead to a collection that the key is not for."""
    who = caller(WRITER, "a").identity
    assert judge_call(who, calls.SEARCH, search(alias, 0), TOPOLOGY_NOW).request.collection == "a"
    count = calls.CountCall(1, alias, b"", Freshness())
    assert judge_call(who, calls.COUNT, count, TOPOLOGY_NOW).collection == "a"
    insert = commands.Insert(collection=alias, ids=["x"], vectors=b"", metadata=[b"{}"])
    judged = judge_call(who, calls.WRITE, write(insert), TOPOLOGY_NOW)
    assert commands.decode(judged.command) == msgspec.structs.replace(insert, collection="a")


def test_a_writer_makes_and_drops_no_collections() -> None:
    made = commands.CreateCollection(CollectionSpec(name="a", dimensions=2))
    for who in (caller(WRITER), caller(WRITER, "a")):
        for command in (made, commands.DropCollection("a")):
            with pytest.raises(Forbidden, match="admin"):
                judge_call(who.identity, calls.WRITE, write(command), TOPOLOGY_NOW)
        judge_call(who.identity, calls.WRITE, write(commands.OpenSession(1), 3), TOPOLOGY_NOW)


def test_what_a_key_for_some_collections_may_ask_about_the_cluster() -> None:
    who = caller(READER, "a").identity
    for method, needs in NEEDS.items():
        if isinstance(needs.about, str):
            try:
                judge_call(who, method, SimpleNamespace(), TOPOLOGY_NOW)
                assert needs.about == "no collection"
            except Forbidden:
                assert needs.about == "the whole cluster"


def test_keys_are_told_to_admins_and_nodes_and_collections_to_those_whose_key_is_for_them() -> None:
    answer, call = TopologyAnswer("n1", TOPOLOGY_NOW), TopologyCall(0)
    assert told(caller(ADMIN).identity, TOPOLOGY, call, answer).topology == TOPOLOGY_NOW
    for rank in (READER, WRITER):
        heard = told(caller(rank).identity, TOPOLOGY, call, answer).topology
        assert (heard.keys, heard.collections) == ((), TOPOLOGY_NOW.collections)
        heard = told(caller(rank, "a").identity, TOPOLOGY, call, answer).topology
        assert [one.spec.name for one in heard.collections] == ["a"]
        assert [one.name for one in heard.aliases] == ["to-a"]
        heard.check_invariants()
    assert told(caller(READER).identity, TOPOLOGY, call, TopologyAnswer("n1", None)).topology is None


async def test_what_changed_is_told_as_the_caller_may_hear_it(service: Service) -> None:
    """A key was made, and a collection: admins hear of both, readers of the collection, and who may use some
    collections of those alone, whole."""
    before = msgspec.structs.replace(TOPOLOGY_NOW, founding=7, keys=())
    made = CollectionInfo(id=10, spec=CollectionSpec(name="c", dimensions=2))
    now = msgspec.structs.replace(before, version=10, keys=TOPOLOGY_NOW.keys, collections=(*before.collections, made))
    node: Any = service._node
    node.topology, node.history = now, History()
    node.history.follow(before)
    node.history.follow(now)
    body = calls.encode(TopologyCall(9, 0.0, False, 7, FORM))
    for rank in (READER, WRITER, ADMIN, NODE):
        data: Any = await service.on_request(caller(rank), TOPOLOGY, body)  # type: ignore[misc]
        assert (now.keys[0].digest in data) == (rank >= ADMIN)
        answer = calls.decode(data, TopologyAnswer)
        assert answer.topology is None and answer.changes is not None
        heard = changed(Summed.of(before), answer.changes)
        assert heard is not None
        assert heard.topology == now.told_to(caller(rank).identity)
        some = caller(rank, "a")
        if rank < ADMIN:
            answer = calls.decode(await service.on_request(some, TOPOLOGY, body), TopologyAnswer)  # type: ignore
            assert answer.topology == now.told_to(some.identity) and answer.changes is None


@pytest.mark.parametrize("epoch", [0, 3])
def test_collections_are_counted_for_those_whose_key_is_for_them(epoch: int) -> None:
    names = ("a@4", "b@5") if epoch else ("a", "b")
    found = CollectionsAnswer([CollectionSpec(name=name, dimensions=2) for name in names], [1, 2], 7)
    answer: Any = calls.encode((3, 1, calls.encode(found))) if epoch else found
    heard = told(caller(READER, "b").identity, calls.COLLECTIONS, CollectionsCall(1, Freshness(), epoch), answer)
    some = calls.decode(heard.body, CollectionsAnswer) if epoch else heard
    assert ([spec.name for spec in some.collections], some.counts) == ([names[1]], [2])


def test_ranks_are_the_roles_in_order() -> None:
    assert [rank_of(role) for role in Role] == [MONITOR, READER, WRITER, ADMIN]
    assert NO_KEY != WRONG_KEY
