"""What the payloads of frames mean: hello, request head, error; and typed bodies for the layers above.

Invariant: whatever a peer sent, decoding raises ProtocolError (or a subclass) and nothing else. Knows no sockets.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from needle.base.config import split_address
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import Detail, NeedleError, ProtocolError, UnsupportedVersion, WrongCluster, from_wire, invalid
from needle.base.parts import Payload
from needle.base.request import ID_MAX, Request, as_trace, is_id
from needle.base.versions import FIRST
from needle.rpc.frame import VIEW_BYTES_MIN

PROTOCOL_VERSION: Final = 1
MESSAGE_CHARS_MAX: Final = 16 * 1024
METHOD_BYTES_MAX: Final = 255
ABOUT_SINCE: Final = 4
"""The version that a node knows which takes what is told of a request."""
ABOUT_BYTES_MAX: Final = 257
T = TypeVar("T")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks. version: of this protocol. node_id: "" for clients. incarnation: differs between two starts of one
    node. key: a client's API key. nonce: of who can prove that it knows the cluster's secret; the answer to it has one
    too, unless the node has no secret, and a proof. The caller then says hello once more, with its own proof
    (rpc/proof.py). knows: the version of commands and formats up to which it can read them. within: of the
    client in a node's process, that node: who asked it is written down there. founding: of the cluster that a node
    belongs to, or that a client works with (Topology.founding); 0 of who knows none, and of nodes that call others:
    they are told apart by their directories."""

    version: int
    cluster_id: str
    node_id: str = ""
    incarnation: int = 0
    key: str = ""
    nonce: bytes = b""
    proof: bytes = b""
    knows: int = FIRST
    within: str = ""
    founding: int = 0


class _WireError(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str
    details: dict[str, str | int | float | bool | None]
    retryable: bool


_encoder = msgspec.msgpack.Encoder(enc_hook=repr)
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_heads: dict[str, bytes] = {}


def encode(value: object) -> bytes:
    """`value` (a msgspec struct or plain data) as MessagePack."""
    return _encoder.encode(value)


def decode(data: Payload, kind: type[T]) -> T:
    """`data` as a `kind`, or a ProtocolError that names the kind and what is wrong."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value: T = decoder.decode(data)
    except DECODE_ERRORS as error:
        name = getattr(kind, "__name__", str(kind))
        raise ProtocolError(f"not a valid {name} message: {error}") from error
    return value


def check_hello(
    mine: Hello, theirs: Hello, *, expected_node: str = "", accepting: bool = False, least: int = FIRST
) -> None:
    """Raise the named refusal unless the two may talk; every message names both sides' values. accepting: `mine` is the
    node's that `theirs` connects to. The refusal is read on both sides, so it says which is which. least: what a
    node must know."""
    here, there = ("the node", "the caller") if accepting else ("the caller", "the node")
    if theirs.version != mine.version:
        raise UnsupportedVersion(
            f"{there} speaks protocol version {theirs.version}, {here} speaks {mine.version}",
            theirs=theirs.version,
            ours=mine.version,
        )
    if theirs.cluster_id != mine.cluster_id:
        raise WrongCluster(
            f"{there} belongs to cluster {theirs.cluster_id!r}, {here} to {mine.cluster_id!r}: check cluster_id",
            theirs=theirs.cluster_id,
            ours=mine.cluster_id,
        )
    if mine.founding and theirs.founding and mine.founding != theirs.founding:
        raise WrongCluster(
            f"{there} belongs to another cluster, which is called {mine.cluster_id!r}, too (founding "
            f"{theirs.founding:x}, here {mine.founding:x}): check the addresses, and which nodes were founded again",
            theirs=theirs.founding,
            ours=mine.founding,
        )
    if expected_node and theirs.node_id != expected_node:
        raise ProtocolError(
            f"the peer is node {theirs.node_id!r}, expected was node {expected_node!r}: wrong address or port",
            theirs=theirs.node_id,
            expected=expected_node,
        )
    if theirs.node_id and theirs.knows < least:
        raise UnsupportedVersion(
            f"node {theirs.node_id} knows commands and formats up to version {theirs.knows}, and its cluster is at "
            f"{least}: start it with the release that the other nodes run, or a later one",
            theirs=theirs.knows,
            ours=least,
        )


def encode_error(error: NeedleError) -> bytes:
    """[code, message, details, retryable]; a very long message is cut so that an error always fits a frame."""
    message = error.message
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[:MESSAGE_CHARS_MAX] + f"... ({len(message)} characters)"
    return _encoder.encode((error.code, message, error.details, error.retryable))


def decode_error(payload: Payload) -> NeedleError:
    """The error the peer raised, as an instance of its own class; ProtocolError is raised for a malformed payload."""
    wire = decode(payload, _WireError)
    # A detail under the name of from_wire's own parameter could not be passed on as a keyword.
    details: dict[str, Detail] = {k + "_" if k in ("self", "message") else k: v for k, v in wire.details.items()}
    return from_wire(wire.code, wire.message, details)


def request_head(method: str) -> bytes:
    """u8 length + ascii name: what stands before a request's body. Raises InvalidArgument for a bad name."""
    head = _heads.get(method)
    if head is None:
        if not method.isascii() or not 0 < len(method) <= METHOD_BYTES_MAX:
            raise invalid("method", method, f"1 to {METHOD_BYTES_MAX} ASCII characters")
        head = _heads[method] = bytes((len(method),)) + method.encode("ascii")
    return head


def split_request(payload: Payload) -> tuple[str, Payload]:
    """(method, body) of a request's payload. A large body is a view, not a copy."""
    size = len(payload)
    stop = payload[0] + 1 if size else 1
    if stop == 1 or stop > size:
        raise ProtocolError(f"a request of {size} bytes holds no method name")
    try:
        method = str(payload[1:stop], "ascii")
    except UnicodeDecodeError:
        raise ProtocolError("the method name is not ASCII") from None
    if size >= VIEW_BYTES_MIN:
        return method, memoryview(payload)[stop:]
    return method, payload[stop:]


def about_head(request: Request) -> bytes:
    """What stands before a request's head where there is something to tell of it: a byte 0, which is no length of a
    method's name, u8 length + ascii of its id, a line feed, and its traceparent."""
    about = f"{request.id}\n{request.trace}".encode("ascii")
    return bytes((0, len(about))) + about


def split_about(payload: Payload) -> tuple[Request, Payload]:
    """(what was told of a request, its payload without that). Only of one that begins with a byte 0. What is no
    traceparent is left out: another tracer may follow other rules."""
    stop = payload[1] + 2 if len(payload) > 1 else 2
    if len(payload) < stop:
        raise ProtocolError(f"a request of {len(payload)} bytes ends within what is told of it")
    try:
        id, _, trace = str(payload[2:stop], "ascii").partition("\n")
    except UnicodeDecodeError:
        raise ProtocolError("what is told of the request is not ASCII") from None
    if id and not is_id(id):
        raise ProtocolError(f"a request's id has up to {ID_MAX} printable ASCII characters")
    rest = memoryview(payload)[stop:] if len(payload) >= VIEW_BYTES_MIN else payload[stop:]
    return Request(id, as_trace(trace)), rest


def parse_endpoint(address: str) -> tuple[str, int]:
    """ "host:port" as (host, port), or a ConfigError; port 0 (any free port) is allowed. IPv6 hosts in brackets."""
    return split_address("address", address, '"host:port" with a port from 0 to 65535', 0)
