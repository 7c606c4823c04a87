"""`needle.connect`: a client with the real network, clock and randomness."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from needle.base.config import parse_address, refuse
from needle.base.errors import ConnectionLost, NeedleError
from needle.base.plain import text
from needle.client import Client, SyncClient
from needle.client.directory import Caller
from needle.client.embedding import Embedder, check_embedder
from needle.client.finding import find_cluster
from needle.client.known_topology import AskedTopology
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.client.shards import ClusterShards
from needle.client.sync import sync_client
from needle.client.traced import client_of, router_of
from needle.client.values import check_count
from needle.routing.topology import Topology
from needle.rpc.tls import Dial, Rereading, context
from needle.rpc.transport import RpcClient
from needle.system import SystemClock

DEFAULT_CLUSTER_ID = "needle"
KEY_VARIABLE = "NEEDLE_API_KEY"
CA_VARIABLE, CERTIFICATE_VARIABLE, TLS_KEY_VARIABLE = "NEEDLE_TLS_CA", "NEEDLE_TLS_CERTIFICATE", "NEEDLE_TLS_KEY"
SYSTEM_CA = "system"
TLS = "a file with the authority's certificate, True for the system's authorities, False, or an ssl.SSLContext"
Tls = bool | str | os.PathLike[str] | ssl.SSLContext | None
ADDRESSES = "a list of 'host:port', or a string of them with commas between"
REACH_SECONDS = 1.0
CONNECT_SECONDS = 5.0


class Connecting:
    """What `connect` returns: `await` it for a Client, or use it with `async with`."""

    def __init__(self, work: Coroutine[Any, Any, Client]) -> None:
        self._work = work
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._work.__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._work
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.close()


def check_addresses(addresses: Iterable[str] | str) -> list[str]:
    """A list of "host:port", or a ConfigError that names the one that is not. A string may hold several, separated by
    commas, as the command line takes them."""
    if isinstance(addresses, bytes | bytearray | memoryview | Mapping) or not isinstance(addresses, Iterable):
        raise refuse("addresses", addresses, ADDRESSES)
    listed = [part.strip() for part in addresses.split(",")] if isinstance(addresses, str) else list(addresses)
    if not listed:
        raise refuse("addresses", listed, "at least one 'host:port'")
    for address in listed:
        parse_address("addresses", address)
    return listed


def check_arguments(
    addresses: Iterable[str] | str, cluster_id: str, batch_bytes_max: int
) -> tuple[list[str], str, int]:
    """What `connect` takes, checked before anything is done. Raises InvalidArgument that names the argument."""
    listed = check_addresses(addresses)
    return listed, text(cluster_id, "cluster_id"), check_count(batch_bytes_max, "batch_bytes_max")


class Credentials(NamedTuple):
    """What a client shows, and how. key: an API key. secrets: the cluster's, of who works on a node's machine. dial:
    for TLS, None without."""

    key: str = ""
    secrets: tuple[str, ...] = ()
    dial: Dial | None = None


NOTHING = Credentials()


def check_key(api_key: str | None) -> Credentials:
    """An API key as it was given, "" for none; else the one in the environment (NEEDLE_API_KEY), if any. Raises
    InvalidArgument."""
    if api_key == "":
        return NOTHING
    if api_key is None:
        return Credentials(os.environ.get(KEY_VARIABLE, ""))
    return Credentials(text(api_key, "api_key", "an API key, as `needle keys create` shows it"))


def check_tls(tls: Tls) -> Dial | None:
    """How to connect. None: as the environment says: NEEDLE_TLS_CA, a file or "system", and for nodes that ask clients
    for certificates NEEDLE_TLS_CERTIFICATE and NEEDLE_TLS_KEY. Raises ConfigError."""
    shown = key = ""
    if tls is None:
        tls = os.environ.get(CA_VARIABLE) or False
        shown, key = os.environ.get(CERTIFICATE_VARIABLE, ""), os.environ.get(TLS_KEY_VARIABLE, "")
    if tls is False:
        return None
    if isinstance(tls, ssl.SSLContext):
        given = tls
        return Dial(context=lambda: given, shown="that of the given SSLContext")
    if tls is not True and (not isinstance(tls, str | os.PathLike) or not os.fspath(tls)):
        raise refuse("tls", tls, TLS)
    ca = None if tls is True or tls == SYSTEM_CA else os.fspath(tls)
    make = partial(context, server=False, ca=ca, certificate=shown, key=key, ask=ssl.CERT_REQUIRED, hostname=True)
    try:
        made = Rereading(make, filter(None, (ca, shown, key)))
    except (OSError, ValueError) as error:
        raise refuse("tls", ca or shown, f"{TLS} ({error})") from None
    return Dial(context=made, shown=shown or "none")


async def check_reachable(addresses: list[str], cluster_id: str, shown: Credentials = NOTHING) -> None:
    """Raise ConnectionLost when all of `addresses` refuse connections: then a person need not wait for a timeout.

    Calls of the library do wait, each until its own: the cluster may be restarting.
    """
    caller = system_caller(cluster_id, shown)
    try:
        tried = await asyncio.gather(
            *(caller.connect(address, REACH_SECONDS) for address in addresses), return_exceptions=True
        )
    finally:
        await caller.close()
    if all(isinstance(outcome, ConnectionLost) and outcome.details.get("refused") for outcome in tried):
        why = "; ".join(outcome.message for outcome in tried if isinstance(outcome, NeedleError))
        raise ConnectionLost(f"no node of the cluster can be reached: {why}", refused=True)


def connect(
    addresses: Iterable[str] | str,
    *,
    cluster_id: str = DEFAULT_CLUSTER_ID,
    batch_bytes_max: int = BATCH_BYTES_MAX,
    api_key: str | None = None,
    tls: Tls = None,
    embedder: Embedder | None = None,
) -> Connecting:
    """A client of the cluster with nodes at `addresses` ("host:port", some or all of them; in one string, by commas).

    `client = await needle.connect([...])` or `async with needle.connect([...]) as client`. api_key: for a cluster that
    asks for one; by default that of the variable NEEDLE_API_KEY, if there is one; "" for none. tls: for one that speaks
    TLS: the file of its authority's certificate, True for the system's authorities, or an ssl.SSLContext; by default
    what NEEDLE_TLS_CA says, if it is set; False for none. embedder: makes vectors of what is given as `text`: an object
    with the `name` of its model, as collections name it, its `dimensions`, and `embed(texts)`, which gives an array of
    one row for each and is called in threads; by default WordLlama, of the extra `demo`. Nodes' certificates must be
    for the hosts that are dialled. Raises ConfigError for a bad address or file, WrongCluster if all nodes belong to
    another cluster, Unauthenticated if they do not take the key, TlsFailed if they do not speak TLS (or nothing else)
    or a certificate is refused, NoQuorum if no node answers within 5 seconds, Overloaded if those that answer have too
    many connections. Other nodes that are down do not matter: calls say so."""
    arguments = check_arguments(addresses, cluster_id, batch_bytes_max)
    shown = check_key(api_key)._replace(dial=check_tls(tls))
    return Connecting(connected(*arguments, shown, check_embedder(embedder)))


async def connected(
    addresses: list[str],
    cluster_id: str,
    batch_bytes_max: int,
    shown: Credentials,
    embedder: Embedder | None = None,
) -> Client:
    """A client that shows these credentials. Raises as `connect`."""
    caller = system_caller(cluster_id, shown)
    try:
        topology = await find_cluster(caller, addresses, CONNECT_SECONDS)
    except BaseException:
        await caller.close()
        raise
    founded = caller.of_founding
    return cluster_client(caller, addresses, topology, batch_bytes_max, embedder=embedder, founded=founded)


def connect_sync(
    addresses: Iterable[str] | str,
    *,
    cluster_id: str = DEFAULT_CLUSTER_ID,
    batch_bytes_max: int = BATCH_BYTES_MAX,
    api_key: str | None = None,
    tls: Tls = None,
    embedder: Embedder | None = None,
) -> SyncClient:
    """`connect` for code without asyncio: the same methods, blocking; use with `with`."""
    arguments = check_arguments(addresses, cluster_id, batch_bytes_max)
    shown = check_key(api_key)._replace(dial=check_tls(tls))
    maker = check_embedder(embedder)
    return sync_client(lambda: connected(*arguments, shown, maker))


def cluster_client(
    caller: Caller,
    addresses: list[str],
    topology: Topology,
    batch_bytes_max: int = BATCH_BYTES_MAX,
    prefer: str | None = None,
    founded: Callable[[int], None] = lambda founding: None,
    embedder: Embedder | None = None,
) -> Client:
    """A client over `caller`. topology: what is known of the cluster, if anything. prefer: the address that eventual
    reads ask first. founded: see AskedTopology. embedder: makes vectors of texts."""
    rng = random.Random(int.from_bytes(os.urandom(16), "little"))
    known = AskedTopology(caller, addresses, topology, founded)
    known.follow(rng)
    shards = ClusterShards(caller, known, rng=rng, prefer=prefer)
    monotonic = SystemClock().monotonic
    router = router_of(shards, batch_bytes_max=batch_bytes_max, monotonic=monotonic, blocking=asyncio.to_thread)
    return client_of(caller, shards, router, embedder)


def system_caller(cluster_id: str, shown: Credentials = NOTHING) -> RpcClient:
    """A client's connections over the real network."""
    rng = random.Random(int.from_bytes(os.urandom(16), "little"))
    clock = SystemClock()
    return RpcClient(cluster_id=cluster_id, rng=rng, clock=clock, key=shown.key, secrets=shown.secrets, dial=shown.dial)
