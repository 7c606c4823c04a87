"""A simulated network between processes: one-way frames and calls, as needle.rpc offers them, with every fault.

A one-way frame may be lost, late, doubled or overtaken. A call may lose its request or its answer: the caller then
sees the connection break, or waits until its timeout, as TCP would show it; the handler may have run. Bytes are copied
at the border and errors cross it by code, as on the wire. It must not know what the bytes mean.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Callable
from inspect import isawaitable

import msgspec

from needle.base.access import everybody
from needle.base.errors import ConnectionLost, DeadlineExceeded, Internal, NeedleError, ProtocolError
from needle.base.parts import Body, whole
from needle.rpc.codec import decode_error, encode_error, request_head, split_request
from needle.rpc.handler import Handler, Peer
from proof.sim.event_loop import SimLoop
from proof.sim.process import Killed, Process
from proof.sim.trace import Trace


class NetworkFaults(msgspec.Struct):
    """Faults of all links: chances in 0..1, delays in seconds."""

    delay: float = 0.001
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class _Listener(msgspec.Struct):
    process: Process
    handler: Handler


class _Call(msgspec.Struct):
    """One call in flight, seen from the caller."""

    caller: Process
    future: asyncio.Future[bytes]
    source: str
    target: str


class SimNetwork:
    """Links between machines, by machine name; listeners by address."""

    def __init__(self, loop: SimLoop, rng: random.Random, trace: Trace) -> None:
        self._loop = loop
        self._rng = rng
        self._trace = trace
        self._listeners: dict[str, _Listener] = {}
        self._machines: dict[str, str] = {}
        self._blocked: Counter[tuple[str, str]] = Counter()
        self._slow: dict[tuple[str, str], float] = {}
        self._clogged: dict[tuple[str, str], float] = {}
        self._handling: dict[int, tuple[Process, _Call]] = {}
        self._streams: dict[Process, dict[str, Peer]] = {}
        """Where a process has sent frames to."""
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._calls = 0
        self.faults = NetworkFaults()
        self.counts: Counter[str] = Counter()
        self.tap: Callable[[str, str, bytes], None] | None = None
        self.overhear: Callable[[bytes], None] = lambda body: None
        self.on_call: Callable[[str, bytes], None] = lambda method, body: None

    # --- topology -----------------------------------------------------------------------------------------------------
    def listen(self, address: str, machine: str, process: Process, handler: Handler) -> None:
        """Serve `address` from `process`."""
        self._listeners[address] = _Listener(process, handler)
        self._machines[address] = machine

    def unlisten(self, address: str, process: Process) -> None:
        """Stop serving, if `process` still does."""
        listener = self._listeners.get(address)
        if listener is not None and listener.process is process:
            del self._listeners[address]
        self._break_calls_into(process)

    def process_died(self, process: Process, *, power_cut: bool = False) -> None:
        """Its sockets close: callers waiting for it see the connection break. Those it sent frames to see that, too,
        unless the whole machine went dark."""
        for address, peer in sorted(self._streams.pop(process, {}).items()):
            delay = None if power_cut else self._delay(peer.remote, self._machines.get(address, address))
            if delay is not None:
                delay = self._in_order(peer.remote, self._machines.get(address, address), delay)
                self._loop.call_in(self._loop.root, delay, self._gone, peer, address)
        for address in [a for a, listener in self._listeners.items() if listener.process is process]:
            del self._listeners[address]
        self._break_calls_into(process)

    def block(self, source: str, target: str) -> None:
        """Drop everything from machine `source` to `target`, one way, until unblocked as often as blocked."""
        self._blocked[(source, target)] += 1

    def unblock(self, source: str, target: str) -> None:
        """Take back one `block`."""
        self._blocked[(source, target)] = max(0, self._blocked[(source, target)] - 1)

    def clear_weather(self) -> None:
        """End loss, duplication and reordering."""
        self.faults = NetworkFaults(delay=self.faults.delay)

    def slow(self, source: str, target: str, factor: float) -> None:
        """Multiply the delay of one direction of a link."""
        self._slow[(source, target)] = factor

    def clog(self, source: str, target: str, until: float) -> None:
        """Hold everything sent on this direction until virtual time `until`, then deliver it all at once."""
        self._clogged[(source, target)] = until

    def heal(self) -> None:
        """No link is blocked, slow or clogged any more; loss and friends end too."""
        self._blocked.clear()
        self._slow.clear()
        self._clogged.clear()
        self.clear_weather()

    def endpoint(self, machine: str, process: Process, node_id: str = "") -> SimEndpoint:
        """The client side for one process; fits needle.rpc's RpcClient."""
        return SimEndpoint(self, machine, process, node_id)

    # --- delivery -----------------------------------------------------------------------------------------------------
    def _delay(self, source: str, target: str) -> float | None:
        """Seconds until arrival, or None when the link swallows it."""
        if self._blocked[(source, target)]:
            self.counts["blocked"] += 1
            return None
        if self.faults.loss and self._rng.random() < self.faults.loss:
            self.counts["lost"] += 1
            return None
        delay = self.faults.delay * (0.5 + self._rng.expovariate(1.0)) * self._slow.get((source, target), 1.0)
        if self.faults.reorder and self._rng.random() < self.faults.reorder:
            self.counts["reordered"] += 1
            delay += self._rng.random() * 20 * self.faults.delay
        return max(delay, self._clogged.get((source, target), 0.0) - self._loop.time())

    def oneway(self, source: str, node_id: str, process: Process, address: str, body: bytes) -> None:
        """Send one frame, perhaps."""
        target = self._machines.get(address, address)
        self._trace.note(f"{source}>{target} send {len(body)} {zlib.crc32(body):08x}")
        self.overhear(body)
        self.counts["messages"] += 1
        copies = 1
        if self.faults.duplicate and self._rng.random() < self.faults.duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        peer = Peer(node_id, process.incarnation, source, everybody())
        self._streams.setdefault(process, {})[address] = peer
        for _ in range(copies):
            delay = self._delay(source, target)
            if delay is not None:
                delay = self._in_order(source, target, delay)
                self._loop.call_in(self._loop.root, delay, self._arrive, peer, address, body)

    def _in_order(self, source: str, target: str, delay: float) -> float:
        """As on one connection, a frame does not overtake the one before it, unless reordering is on."""
        if self.faults.reorder:
            return delay
        arrival = max(self._loop.time() + delay, self._last_arrival.get((source, target), 0.0))
        self._last_arrival[(source, target)] = arrival
        return arrival - self._loop.time()

    def _arrive(self, peer: Peer, address: str, body: bytes) -> None:
        listener = self._listeners.get(address)
        if listener is not None:
            self._loop.call_soon(listener.handler.on_oneway, peer, body, context=listener.process.context)

    def intrude(self, address: str, visit: Callable[[Callable[[str, bytes], None]], None]) -> None:
        """Somebody calls on `address`, past all faults of links: `visit` runs in the process that listens there, with
        what delivers a frame under the name of any node."""
        listener = self._listeners.get(address)
        if listener is None:
            return

        def deliver(node_id: str, body: bytes) -> None:
            self.counts["strangers"] += 1
            try:
                listener.handler.on_oneway(Peer(node_id, 1, "stranger", everybody()), body)
            except ProtocolError as error:  # as rpc.server_connection does
                self._trace.note(f"{address} refuses a frame: {error}")

        self._loop.call_soon(visit, deliver, context=listener.process.context)

    def _gone(self, peer: Peer, address: str) -> None:
        listener = self._listeners.get(address)
        if listener is not None:
            self._loop.call_soon(listener.handler.on_gone, peer, context=listener.process.context)

    async def call(
        self, source: str, peer: Peer, process: Process, address: str, method: str, body: bytes, timeout: float
    ) -> bytes:
        """One call. Raises the peer's NeedleError, ConnectionLost or DeadlineExceeded."""
        target = self._machines.get(address, address)
        self._trace.note(f"{source}>{target} call {method} {len(body)} {zlib.crc32(body):08x}")
        self.counts["calls"] += 1
        self.on_call(method, body)
        self._calls += 1
        number = self._calls
        call = _Call(process, self._loop.create_future(), source, target)
        timer = self._loop.call_later(timeout, self._expire, call, method, timeout)
        try:
            delay = self._delay(source, target)
            request = request_head(method) + body
            if delay is None:
                self._swallow(call)
            else:
                self._loop.call_in(self._loop.root, delay, self._serve, number, call, peer, address, request)
            return await call.future
        finally:
            timer.cancel()

    async def probe(self, source: str, process: Process, address: str, timeout: float) -> None:
        """Reach `address` and come back, without asking anything. Raises like `call`."""
        target = self._machines.get(address, address)
        call = _Call(process, self._loop.create_future(), source, target)
        timer = self._loop.call_later(timeout, self._expire, call, "connecting", timeout)
        try:
            delay = self._delay(source, target)
            if delay is None:
                self._swallow(call)
            else:
                self._loop.call_in(self._loop.root, delay, self._accept, call, address)
            await call.future
        finally:
            timer.cancel()

    def _accept(self, call: _Call, address: str) -> None:
        refused = address not in self._listeners
        self._reply(call, ConnectionLost(f"connection to {address} refused") if refused else b"")

    def _serve(self, number: int, call: _Call, peer: Peer, address: str, request: bytes) -> None:
        listener = self._listeners.get(address)
        if listener is None:
            self._reply(call, ConnectionLost(f"connection to {address} refused"))
            return
        self._handling[number] = (listener.process, call)
        self._loop.call_soon(self._start, number, listener, call, peer, request, context=listener.process.context)

    def _start(self, number: int, listener: _Listener, call: _Call, peer: Peer, request: bytes) -> None:
        self._loop.create_task(self._handle(number, listener, call, peer, request))

    async def _handle(self, number: int, listener: _Listener, call: _Call, peer: Peer, request: bytes) -> None:
        answer: bytes | NeedleError
        try:
            parts = listener.handler.on_request(peer, *split_request(request))
            if isawaitable(parts):
                parts = await parts
            answer = b"".join(parts) if isinstance(parts, list) else bytes(parts)
        except NeedleError as error:
            answer = decode_error(encode_error(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # a bug of the product: reported to the run, and to the caller
            self._forget(number)
            self._reply(call, Internal(f"{type(error).__name__}: {error}"))
            self._loop.call_exception_handler(
                {"message": f"handler of {split_request(request)[0]}", "exception": error}
            )
            return
        self._forget(number)
        listener.process.fence()
        self._reply(call, answer)

    def _forget(self, number: int) -> None:
        self._handling.pop(number, None)

    def _reply(self, call: _Call, answer: bytes | NeedleError) -> None:
        delay = self._delay(call.target, call.source)
        if delay is None:
            self._swallow(call)
        else:
            self._loop.call_in(call.caller, delay, self._finish, call, answer)

    def _swallow(self, call: _Call) -> None:
        """Half of the time the sender's TCP gives up and resets; otherwise the caller waits for its timeout."""
        if self._rng.random() < 0.5:
            error = ConnectionLost(f"connection to {call.target} was reset")
            self._loop.call_in(call.caller, 0.05 + self._rng.random() * 0.5, self._finish, call, error)

    @staticmethod
    def _finish(call: _Call, answer: bytes | NeedleError) -> None:
        if call.future.done():
            return
        if isinstance(answer, NeedleError):
            call.future.set_exception(answer)
        else:
            call.future.set_result(answer)

    def _expire(self, call: _Call, method: str, timeout: float) -> None:
        self._finish(call, DeadlineExceeded(f"{method} to {call.target}: no answer within {timeout:g} s"))

    def _break_calls_into(self, process: Process) -> None:
        for number, (server, call) in list(self._handling.items()):
            if server is process:
                self._forget(number)
                self._reply(call, ConnectionLost(f"connection to {call.target} was closed"))


class SimEndpoint:
    """The outgoing side of one process. A dead process sends nothing."""

    def __init__(self, network: SimNetwork, machine: str, process: Process, node_id: str) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._peer = Peer(node_id, process.incarnation, machine, everybody())
        self._closed = False
        self._reached: dict[str, None] = {}

    async def call(self, address: str, method: str, body: Body, timeout: float, node: str = "") -> bytes:
        """See SimNetwork.call. node: as for RpcClient; here an address never changes hands."""
        self._process.fence()
        if self._closed:
            raise ConnectionLost("this client is closed")
        network = self._network
        try:
            answer = await network.call(self._machine, self._peer, self._process, address, method, whole(body), timeout)
        except ConnectionLost:
            self._reached.pop(address, None)
            raise
        self._reached[address] = None
        return answer

    def send(self, address: str, body: Body, node: str = "") -> bool:
        """One-way; True: accepted, not: delivered."""
        data = whole(body)
        if not self._process.alive:
            raise Killed(self._machine)
        if self._closed:
            return False
        if self._network.tap is not None:
            self._network.tap(self._peer.node_id, address, data)
        self._network.oneway(self._machine, self._peer.node_id, self._process, address, data)
        return True

    def connected(self, address: str) -> bool:
        """As RpcClient.connected: whether the last use of `address` succeeded."""
        return address in self._reached

    async def connect(self, address: str, timeout: float) -> None:
        """As RpcClient.connect: raises ConnectionLost or DeadlineExceeded."""
        self._process.fence()
        await self._network.probe(self._machine, self._process, address, timeout)
        self._reached[address] = None

    def forget(self, address: str, node: str = "") -> None:
        """As RpcClient.forget."""

    async def close(self) -> None:
        """Later calls fail, later sends are dropped."""
        self._closed = True
