"""API keys and the cluster's secret on real nodes: both doors, each node, from the first key to the last."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import needle
from harness.calm import CALM
from needle import Client, Forbidden, InvalidArgument, NeedleError, SessionExpired, Unauthenticated
from needle.cli.app import main
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.connecting import Credentials, connected
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol import calls, commands
from needle.protocol.calls import GroupCall

SECRET = "0123456789abcdef" * 4
CLOSED: dict[str, Any] = {"require_keys": True, "cluster_secret": SECRET}
VECTOR = [1.0] * 8

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def inside(cluster: ProcessCluster, *names: str) -> Client:
    """As who may read the settings of a node."""
    addresses = [cluster.nodes[name].address for name in names or cluster.nodes]
    return await connected(addresses, "needle", BATCH_BYTES_MAX, Credentials(secrets=(SECRET,)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    async with ProcessCluster(module_path, **CALM, **CLOSED, audit={"file": "audit.jsonl"}) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(cluster: ProcessCluster) -> AsyncIterator[Client]:
    async with await inside(cluster) as first:
        key = (await first.create_key("ops", "admin")).key
    async with cluster.connect(api_key=key) as client:
        await client.create_collection("other", dimensions=8)
        yield client


async def status(address: str, path: str, key: str = "", method: str = "GET", body: bytes | None = None) -> int:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def ask() -> int:
        request = urllib.request.Request(f"http://{address}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    return await asyncio.to_thread(ask)


async def test_without_a_key_or_with_a_wrong_one_nothing_opens(cluster: ProcessCluster, admin: Client) -> None:
    for options in ({}, {"api_key": "wrong"}):
        with pytest.raises(Unauthenticated):
            await cluster.connect(**options)
    for node in cluster.nodes.values():
        assert await status(node.http, "/v1/nodes") == 401
        assert await status(node.http, "/v1/nodes", "wrong") == 401
        assert await status(node.http, "/livez") == 200
    with pytest.raises(Unauthenticated, match="different secrets"):
        await connected(list(cluster.addresses.values()), "needle", BATCH_BYTES_MAX, Credentials(secrets=("x" * 32,)))


async def test_each_role_may_do_what_it_is_for_through_both_doors(cluster: ProcessCluster, admin: Client) -> None:
    search = b'{"vector": [1, 1, 1, 1, 1, 1, 1, 1]}'
    put = b'{"vector": [1, 1, 1, 1, 1, 1, 1, 1]}'
    for role, writes, rules in (("reader", False, False), ("writer", True, False), ("admin", True, True)):
        key = (await admin.create_key(f"a-{role}", role)).key
        at = [node.http for node in cluster.nodes.values()]
        async with cluster.connect(api_key=key) as client:
            assert await client.count() >= 0
            await client.search(VECTOR, 1)
            work: list[tuple[bool, Any]] = [
                (writes, lambda client=client: client.insert("x", VECTOR)),
                (rules, lambda client=client, role=role: client.create_collection(f"of-{role}", dimensions=2)),
                (rules, lambda client=client: client.create_field_index("default", "year")),
                (rules, lambda client=client, role=role: client.create_key(f"by-{role}")),
                (rules, client.keys),
                (rules, client.step_down),
            ]
            for may, call in work:
                if may:
                    await call()
                else:
                    with pytest.raises(Forbidden):
                        await call()
            with pytest.raises(Forbidden, match="nodes ask each other"):
                await client._caller.call(
                    cluster.nodes["node-1"].address, "raft.read_index", calls.encode(GroupCall(1, 1.0)), 5.0
                )
            assert ([one.name for one in client.topology().keys] != []) == rules
        assert await status(at[0], "/v1/collections/default/search", key, "POST", search) == 200
        assert await status(at[1], "/v1/collections/default/documents/x", key, "PUT", put) == (200 if writes else 403)
        assert await status(at[2], "/v1/keys", key) == (200 if rules else 403)
        field = "/v1/collections/default/field_indexes/in.year"
        assert [await status(at[0], field, key, how) for how in ("PUT", "DELETE")] == [200 if rules else 403] * 2


async def test_a_feed_tells_nothing_of_what_is_written_after_its_key_was_revoked(
    cluster: ProcessCluster, admin: Client
) -> None:
    """Its call waits on a node for the next change, and outlasts the key."""
    for name, filter in (("feed", None), ("feed-of-some", {"fed": True})):
        key = (await admin.create_key(name, "reader", filter=filter)).key
        async with cluster.connect(api_key=key) as client, client.changes() as feed:
            await admin.insert("before", VECTOR, {"fed": True})
            assert (await anext(feed)).id == "before"
            waiting = asyncio.ensure_future(anext(feed))
            await admin.revoke_key(name)
            await admin.insert("after", VECTOR, {"fed": True})
            with pytest.raises(Unauthenticated, match="revoked"):
                await waiting


async def test_a_key_for_some_collections_uses_up_no_number_of_anothers_session(
    cluster: ProcessCluster, admin: Client
) -> None:
    """Ids of sessions are indexes of the log, so they can be guessed. A write under a number that is used up was
    answered as done, and was not: also in a collection that the key is not for."""
    key, ops = (
        (await admin.create_key("few", "writer", collections=["other"])).key,
        (await admin.create_key("some", "admin")).key,
    )
    put, path = b'{"vector": [1, 1, 1, 1, 1, 1, 1, 1]}', "/v1/collections/default/documents"
    for at, node in enumerate(cluster.nodes.values()):  # each routes in sessions of its own
        assert await status(node.http, f"{path}/before-{at}", ops, "PUT", put) == 200
    async with cluster.connect(api_key=key) as client:
        now, leader = client.topology(), cluster.nodes[await client.leader()].address
        assert now.map is not None
        stored = now.named("other").stored_name

        async def delete(session: int, seq: int) -> str:
            command = commands.Delete(stored, ["nothing"], session=commands.Session(session, seq, 0))
            call = calls.WriteCall(1, commands.encode(command), 10.0, now.map.epoch)
            try:
                await client._caller.call(leader, calls.WRITE, calls.encode(call), 10.0)
            except SessionExpired as error:
                return "unknown" if "unknown here" in error.message else "known"
            return "taken"

        for session in range(1, 100):
            assert set(await asyncio.gather(*[delete(session, seq) for seq in range(1, 9)])) == {"unknown"}
        for n in range(3):
            await client.insert(f"own-{n}", VECTOR, collection="other")
        await client.insert_batch([(f"many-{n}", VECTOR) for n in range(3000)], collection="other")
        assert await client.count(collection="other") == 3003
        assert (await client.delete_where({}, collection="other")).count == 3003
    for at, node in enumerate(cluster.nodes.values()):
        assert await status(node.http, f"{path}/after-{at}", ops, "PUT", put) == 200
        assert await admin.get(f"after-{at}") is not None


async def test_who_did_what_and_who_was_refused_is_written_down(cluster: ProcessCluster, admin: Client) -> None:
    def told() -> list[dict[str, Any]]:
        files = (cluster.directory / name / "audit.jsonl" for name in cluster.nodes)
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    node = next(iter(cluster.nodes.values()))
    key = (await admin.create_key("watched", "reader")).key
    async with cluster.connect(api_key=key) as client:
        await client.count()
        with pytest.raises(Forbidden):
            await client.insert("x", VECTOR)
        with pytest.raises(Forbidden):
            await client.step_down()
    assert await status(node.http, "/v1/keys", key) == 403
    ops = (await admin.create_key("by-hand", "admin")).key
    assert await status(node.http, "/v1/keys/watched", ops, "DELETE") == 200
    assert await status(node.http, "/v1/nodes", key) == 401
    with pytest.raises(Unauthenticated):
        await cluster.connect(api_key=key)
    await admin.revoke_key("by-hand")
    await admin.create_field_index("other", "year")

    wanted = {
        ("binary", "DeclareField", "done", "ops", "name=other path=year declared=True"),
        ("binary", "CreateKey", "done", "ops", "name=watched role=reader"),
        ("binary", "write", "forbidden", "watched", ""),
        ("binary", "step_down", "forbidden", "watched", ""),
        ("http", "GET /v1/keys", "forbidden", "watched", ""),
        ("http", "DELETE /v1/keys/watched", "done", "by-hand", "revoke_key"),
        ("http", "GET /v1/nodes", "unauthenticated", "", ""),
        ("binary", "hello", "unauthenticated", "", ""),
        ("binary", "RevokeKey", "done", "ops", "name=by-hand"),
    }

    async def all_there() -> bool:
        fields = ("door", "call", "outcome", "key", "about")
        return wanted <= {tuple(line.get(field, "") for field in fields) for line in told()}

    await wait_for(all_there, 30.0, "the lines")  # each is written soon after its answer, others' too
    lines = told()
    assert not [line for line in lines if line["call"] == "index_room" and line["outcome"] == "done"]  # a question
    assert key not in json.dumps(lines)
    assert all(line["remote"].startswith("127.0.0.1:") and line["at"] for line in lines)


async def test_what_one_node_asks_another_for_a_caller_is_written_down_once(
    cluster: ProcessCluster, admin: Client
) -> None:
    """By the node that was asked by HTTP, which knows the key, and not by whoever leads the catalog, or the shard."""

    def told() -> Counter[tuple[str, str, str]]:
        files = (cluster.directory / name / "audit.jsonl" for name in cluster.nodes)
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return Counter((line["node"], line["call"], line.get("key", "")) for line in lines)

    ops = (await admin.create_key("door", "admin")).key
    bound = (await admin.create_key("few-documents", filter={"a": 1})).key
    explain, named = b'{"vector": [1, 1, 1, 1, 1, 1, 1, 1], "explain": true}', b'{"collection": "other"}'
    search, alias = "/v1/collections/default/search", "/v1/aliases/by-door"
    await asyncio.sleep(0.5)
    before, wanted = told(), set[tuple[str, str, str]]()
    for name, node in cluster.nodes.items():
        assert await status(node.http, alias, ops, "PUT", named) == 200
        assert await status(node.http, search, bound, "POST", explain) == 403
        wanted |= {(name, f"PUT {alias}", "door"), (name, f"POST {search}", "few-documents")}
    await admin.remove_alias("by-door")
    await wait_for(lambda: len(told() - before) > len(wanted), 30.0, "the lines")
    await asyncio.sleep(0.5)
    assert {line for line in told() - before if line[2] != "ops"} == wanted


async def test_a_key_for_one_collection_knows_of_no_other(cluster: ProcessCluster, admin: Client) -> None:
    key = (await admin.create_key("tenant", "writer", collections=["other"])).key
    await admin.set_alias("mine", "other")
    at = next(iter(cluster.nodes.values())).http
    async with cluster.connect(api_key=key) as client:
        await client.insert("x", VECTOR, collection="other")
        assert await client.count(collection="mine") == 1
        assert [hit.id for hit in await client.search(VECTOR, 3, collection="mine")] == ["x"]
        assert [spec.name for spec in await client.collections()] == ["other"]
        assert (await client.describe_collection("other")).documents == 1
        (only,) = await client.describe_collections()
        assert only.name == "other" and only.size is not None and only.size.documents == 1
        with pytest.raises(NeedleError):
            await client.insert("x", VECTOR)
        with pytest.raises(Forbidden):
            await client.status()

    async def known() -> bool:
        return await status(at, "/v1/collections/mine", key) == 200

    await wait_for(known, 60, "the alias at this node")
    for path, expected in (("default", 403), ("nowhere", 403), ("other", 200)):
        assert await status(at, f"/v1/collections/{path}", key) == expected
    assert await status(at, "/v1/cluster", key) == 403


async def test_a_revoked_key_is_refused_by_every_node_within_a_second(cluster: ProcessCluster, admin: Client) -> None:
    key = (await admin.create_key("short", "reader")).key
    body = calls.encode(GroupCall(1, 1.0))
    async with cluster.connect(api_key=key) as client:
        for node in cluster.nodes.values():  # connections that stay open
            await client._caller.call(node.address, calls.LEADER, body, 5.0)
        assert await admin.revoke_key("short") == []
        begun = time.monotonic()
        for node in cluster.nodes.values():
            with pytest.raises(Unauthenticated):
                await client._caller.call(node.address, calls.LEADER, body, 5.0)
            assert await status(node.http, "/v1/nodes", key) == 401
        assert time.monotonic() - begun < 30  # no node was asked twice
        with pytest.raises(Unauthenticated):
            await client.count()
    with pytest.raises(Unauthenticated):
        await cluster.connect(api_key=key)
    with pytest.raises(InvalidArgument, match="keys list"):
        await admin.revoke_key("short")
    assert "short" not in [one.name for one in await admin.keys()]


async def test_a_node_without_the_secret_comes_in_nowhere(cluster: ProcessCluster, admin: Client) -> None:
    seeds = {"join": list(cluster.addresses.values())[:1]}
    name = cluster.add(require_keys=False, cluster_secret=None, sharding=seeds, cluster_nodes=None, dimensions=None)
    stranger = cluster.nodes[name]
    try:
        stranger.start()

        def told() -> bool:
            return "it needs the cluster_secret of that cluster" in stranger.log.read_text()

        await wait_for(told, 60, "its being told what it lacks")
        assert await admin.refresh_topology(confirmed=True)
        assert name not in admin.nodes()
    finally:
        cluster.kill(name)
        del cluster.nodes[name]


async def test_the_command_makes_lists_and_revokes_keys(
    cluster: ProcessCluster, admin: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEEDLE_API_KEY", raising=False)
    config = str(cluster.directory / "node-1.toml")
    at = ",".join(cluster.addresses.values())

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    async def off(*argv: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, *argv)

    code, out, err = await off("keys", "create", "cli", "--role", "admin", "--config", config)
    assert code == 0, err
    key = out.strip()
    assert key.startswith("ndl_") and key not in err
    code, _, err = await off("status", "--cluster", at)
    assert code == 1 and "[unauthenticated]" in err and "NEEDLE_API_KEY" in err
    monkeypatch.setenv("NEEDLE_API_KEY", key)
    assert (await off("status", "--cluster", at))[0] == 0
    code, out, _ = await off("keys", "list", "--cluster", at)
    assert code == 0 and "cli" in out and key not in out
    assert (await off("keys", "revoke", "cli", "--cluster", at))[0] == 0
    code, _, err = await off("keys", "list", "--cluster", at)
    assert code == 1 and "[unauthenticated]" in err
    monkeypatch.setenv("NEEDLE_API_KEY", "wrong")
    assert (await off("keys", "list", "--config", config))[0] == 0  # the way back


async def test_the_sync_client_takes_a_key_too(cluster: ProcessCluster, admin: Client) -> None:
    key = (await admin.create_key("sync")).key

    def work() -> int:
        with needle.connect_sync(list(cluster.addresses.values()), api_key=key) as client:
            return client.count()

    assert await asyncio.to_thread(work) >= 0


async def test_nodes_that_wait_are_made_a_cluster_by_who_has_their_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProcessCluster(tmp_path, 1, sharding={}, **CALM, **CLOSED) as cluster:
        name, node = next(iter(cluster.nodes.items()))
        argv = ["cluster", "create", "--shards", "1", "--replicas", "1", f"{name}={node.address}", "--dimensions", "8"]
        await wait_for(lambda: "listens on" in node.output(), 60, "its listening")
        assert await asyncio.to_thread(main, argv) == 1
        assert "[unauthenticated]" in capsys.readouterr().err
        monkeypatch.setenv("NEEDLE_API_KEY", "of another cluster")
        monkeypatch.setenv("NEEDLE_CLUSTER_SECRET", SECRET)
        assert await asyncio.to_thread(main, argv) == 0
        monkeypatch.delenv("NEEDLE_API_KEY")
        assert await asyncio.to_thread(main, ["keys", "create", "ops", "--cluster", node.address]) == 0


async def test_a_key_of_the_environment_is_not_shown_to_a_cluster_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDLE_API_KEY", "of another cluster")
    async with ProcessCluster(tmp_path, 1, **CALM) as cluster, cluster.connect() as client:
        assert await client.count() == 0
        with pytest.raises(Unauthenticated):
            await needle.connect([cluster.nodes["node-1"].address])
        async with needle.connect([cluster.nodes["node-1"].address], api_key="") as other:
            assert await other.count() == 0


async def test_a_running_cluster_is_closed_node_by_node(tmp_path: Path) -> None:
    """Open, then all have the secret, then all ask for keys: it serves throughout, and nobody is locked out."""
    async with ProcessCluster(tmp_path, **CALM) as cluster:
        async with cluster.connect() as client:
            await client.insert("x", VECTOR)
            key = (await client.create_key("ops", "admin")).key
        with pytest.raises(Unauthenticated):
            await cluster.connect(api_key="wrong")  # a wrong key is told before it matters
        async with cluster.connect(api_key=key) as client:
            for step in ({"cluster_secret": SECRET}, CLOSED):
                for name, node in cluster.nodes.items():
                    cluster.kill(name)
                    node.settings.update(step)
                    cluster.restart(name)
                    await cluster.ready()
                    await client.insert(name, VECTOR)
                if step is not CLOSED:
                    async with cluster.connect() as open_:
                        assert await open_.count() == 4
            assert await client.count() == 4
        with pytest.raises(Unauthenticated):
            await cluster.connect()


async def test_a_key_of_some_collections_is_told_that_it_may_not_ask_how_the_cluster_is(
    cluster: ProcessCluster, admin: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (await admin.create_key("narrow", "writer", collections=["other"])).key
    async with cluster.connect(api_key=key) as client:
        for call in (client.get_stats, client.cluster_status, client.health_check):
            with pytest.raises(Forbidden, match="for other only"):
                await call()
    monkeypatch.setenv("NEEDLE_API_KEY", key)
    at = ",".join(cluster.addresses.values())
    for command in (["status"], ["leader"], ["cluster", "stats"]):
        assert await asyncio.to_thread(main, [*command, "--cluster", at]) == 1
        said = capsys.readouterr()
        assert "[forbidden]" in said.err and not said.out, command
