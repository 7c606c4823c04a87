"""A 3-node etcd to compare with: Debian's etcd-server, and a client lean enough not to be what is measured.

The client speaks gRPC over one raw HTTP/2 connection with request headers encoded once; grpcio's own asyncio client
tops out near 3,000 requests/s and would flatter Needle.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import cast

from needle.local.free_ports import free_ports

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


class EtcdCluster:
    """Three etcd processes on 127.0.0.1 with data directories of their own."""

    def __init__(self, heartbeat_ms: int = 100, election_ms: int = 1000) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-etcd-"))
        ports = free_ports(6)
        self.clients, self.peers = ports[:3], ports[3:]
        self.timing = (heartbeat_ms, election_ms)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        cluster = ",".join(f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(self.peers))
        for i in range(3):
            client, peer = f"http://127.0.0.1:{self.clients[i]}", f"http://127.0.0.1:{self.peers[i]}"
            command = ["etcd", "--name", f"n{i}", "--data-dir", str(self.directory / f"n{i}")]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "error"]
            command += ["--heartbeat-interval", str(self.timing[0]), "--election-timeout", str(self.timing[1])]
            log = (self.directory / f"n{i}.log").open("wb")
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def kill(self, i: int) -> None:
        self.processes[i].send_signal(signal.SIGKILL)
        self.processes[i].wait()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _literal(name: bytes, value: bytes) -> bytes:
    """An HPACK literal without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class EtcdClient(asyncio.Protocol):
    """One HTTP/2 connection; `put` resolves when etcd acknowledged the write."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._answered: set[int] = set()
        self._stream = -1
        self._window = 65535
        self._blocked: list[tuple[int, bytes]] = []
        self._unsent: list[bytes] = []
        self._received = 0
        self._loop = asyncio.get_running_loop()
        self._path = {name: self._headers(name) for name in (b"/etcdserverpb.KV/Put", b"/etcdserverpb.KV/Range")}

    @staticmethod
    def _headers(path: bytes) -> bytes:
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"etcd")]
        fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        return b"".join(_literal(*field) for field in fields)

    @classmethod
    async def connect(cls, port: int) -> EtcdClient:
        _, protocol = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        window = _frame(_WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + window)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("etcd closed the connection"))
        self._waiting.clear()

    def put(self, key: bytes, value: bytes) -> asyncio.Future[None]:
        return self._request(b"/etcdserverpb.KV/Put", _field(1, key) + _field(2, value))

    def get(self, key: bytes) -> asyncio.Future[None]:
        return self._request(b"/etcdserverpb.KV/Range", _field(1, key))

    def _request(self, path: bytes, message: bytes) -> asyncio.Future[None]:
        self._stream += 2
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[self._stream] = future
        body = b"\x00" + struct.pack(">I", len(message)) + message
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(_frame(_HEADERS, _END_HEADERS, self._stream, self._path[path]))
        self._data(self._stream, body)
        return future

    def _data(self, stream: int, body: bytes) -> None:
        if self._window < len(body):
            self._blocked.append((stream, body))
            return
        self._window -= len(body)
        self._unsent.append(_frame(_DATA, _END_STREAM, stream, body))

    def _flush(self) -> None:
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        view, offset = memoryview(bytes(self._buffer)), 0
        while len(view) - offset >= 9:
            size = int.from_bytes(view[offset : offset + 3])
            if len(view) - offset < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", view[offset + 3 : offset + 9])
            self._on_frame(kind, flags, stream, view[offset + 9 : offset + 9 + size])
            offset += 9 + size
        del self._buffer[:offset]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if kind == _DATA:
            self._answered.add(stream)  # a message came: etcd sends none with an error status
            self._received += len(payload)
            if self._received > 1 << 20:
                self._transport.write(_frame(_WINDOW, 0, 0, struct.pack(">I", self._received)))
                self._received = 0
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, bytes(payload)))
        elif kind == _WINDOW and stream == 0:
            self._window += int.from_bytes(payload)
            blocked, self._blocked = self._blocked, []
            for waiting, body in blocked:
                self._data(waiting, body)
            if self._unsent:
                self._flush()
        elif kind == _GOAWAY:
            self._transport.close()
        if kind == _RST or (flags & _END_STREAM and kind in (_DATA, _HEADERS)):
            self._finish(stream, ok=kind != _RST and stream in self._answered)

    def _finish(self, stream: int, *, ok: bool) -> None:
        self._answered.discard(stream)
        future = self._waiting.pop(stream, None)
        if future is not None and not future.done():
            if ok:
                future.set_result(None)
            else:
                future.set_exception(ConnectionError("etcd refused the request"))

    def close(self) -> None:
        self._transport.close()


async def leader_client(cluster: EtcdCluster, timeout: float = 20.0) -> tuple[int, EtcdClient]:
    """A client of the node that leads (its writes need no forwarding). Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while loop.time() < deadline:
        for i, port in enumerate(cluster.clients):
            if cluster.processes[i].poll() is not None:
                continue
            with contextlib.suppress(ConnectionError, OSError, TimeoutError):
                client = await EtcdClient.connect(port)
                async with asyncio.timeout(1.0):
                    await client.put(b"probe", b"")
                if await is_leader(port):
                    return i, client
                client.close()
        await asyncio.sleep(0.02)
    raise TimeoutError("etcd elected no leader")


async def is_leader(port: int) -> bool:
    """Whether the etcd node at this client port leads, by its own metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = await reader.read()
    writer.close()
    return b"\netcd_server_is_leader 1" in text
