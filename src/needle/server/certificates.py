"""A node's certificates: read at the start, read again when their files change.

Invariant: what is used has passed a handshake with itself, so a file that is damaged, expired, by another authority or
another node's is named and refused, and what was there before stays in use. Once its end has come the handshake is
tried again: only that tells whether anybody still connects by it. Reading is blocking; it never happens on the event
loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from needle.base.errors import ConfigError, NeedleError
from needle.base.ids import NodeId
from needle.base.tls_config import TlsConfig
from needle.rpc.tls import Dial, Door, check_node_name, context, states_of
from needle.system import warn_if_public

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 2.0
"""So often the files are looked at."""
REMIND_SECONDS: Final = 3600.0
"""So often it is said again that the files are refused."""
EXPIRED: Final = "the certificate has expired"
Run = Callable[..., Awaitable[object]]


class _Contexts(NamedTuple):
    node_door: ssl.SSLContext
    http_door: ssl.SSLContext
    dial: ssl.SSLContext
    expires: float
    """When the first of those that matter does: seconds since 1970."""


class Certificates:
    """What a node shows and takes. `load()` before anything else. wall: seconds since 1970."""

    def __init__(self, config: TlsConfig, node_id: NodeId, wall: Callable[[], float]) -> None:
        self._config = config
        self._node_id = node_id
        self._wall = wall
        self._used: _Contexts | None = None
        self._seen: object = None
        self._said_at: float | None = None
        self.refused = ""
        """The setting whose changed file is refused, while those of before are in use; the log says why."""
        self.expired = False
        """Whether nobody connects by the certificate in use any more; connections that were open go on."""

    # --- in use ------------------------------------------------------------------------------------------------------
    def door(self) -> Door:
        """Of the binary protocol: clients may have certificates, nodes do."""
        return Door(context=lambda: self._contexts.node_door, required=self._config.required, shown=self._shown)

    def http_door(self) -> Door:
        """Of HTTP. Browsers are asked for a certificate only where everybody needs one."""
        return Door(context=lambda: self._contexts.http_door, required=self._config.required, shown=self._shown)

    def dial(self) -> Dial:
        """To other nodes, which are known by their names: their addresses may be those of tunnels."""
        return Dial(
            context=lambda: self._contexts.dial,
            by_name=True,
            optional=not self._config.required,
            shown=self._shown,
        )

    @property
    def _contexts(self) -> _Contexts:
        if self._used is None:
            raise ConfigError("the certificates were not read yet", field="tls.certificate")
        return self._used

    @property
    def _shown(self) -> str:
        return f"{self._config.certificate} of node {self._node_id}"

    @property
    def expires(self) -> float:
        """When the certificate in use, one between it and its authority, or an authority in tls.ca is no longer good:
        seconds since 1970."""
        return self._contexts.expires

    # --- files -------------------------------------------------------------------------------------------------------
    def load(self) -> None:
        """Read the files and use them. Blocking. Raises ConfigError that names what is wrong with which file."""
        self._seen = self._look()
        self._used = self._read()
        warn_if_public("tls.key", self._config.key)

    async def watch(self, run: Run) -> None:
        """Read the files again whenever they change, until cancelled. run: runs blocking work in a thread."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await run(self.refresh)

    def refresh(self) -> bool:
        """Whether changed files were found and are used from now on. What is wrong with them is logged. Blocking."""
        seen, now = self._look(), self._wall()
        again = self._said_at is not None and abs(now - self._said_at) >= REMIND_SECONDS
        if seen == self._seen and not again:
            self._look_at_end(now)
            return False
        self._seen = seen
        try:
            self._used = self._read()
        except NeedleError as error:
            self._said_at, self.refused = now, str(error.details.get("field") or "tls.certificate")
            log.error("node %s keeps the certificates it has, the changed ones are refused: %s", self._node_id, error)
            return False
        self._said_at, self.expired, self.refused = None, False, ""
        warn_if_public("tls.key", self._config.key)
        log.info("node %s uses changed certificates: %s", self._node_id, self._config.certificate)
        return True

    def _look_at_end(self, now: float) -> None:
        """Whether what is used still is. An authority that others have taken the place of may end: then it is."""
        used = self._contexts
        if not self.expired and now < used.expires:
            return
        try:
            self._used = used._replace(expires=self._try(used))
        except NeedleError as error:
            if not self.expired:
                log.error("nobody can connect to node %s any more, it leads no more: %s", self._node_id, error)
            self.expired = True
        else:
            self.expired = False

    def _look(self) -> object:
        return states_of((self._config.certificate, self._config.key, self._config.ca))

    def _read(self) -> _Contexts:
        config = self._config
        for name in ("certificate", "key", "ca"):
            path = getattr(config, name)
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a pipe may wait forever
                    raise _refused(name, path, "is not a file")
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise _refused(name, path, f"cannot be read: {error.strerror}") from None
        always = config.client_certificates
        try:
            made = _Contexts(
                self._context(ssl.CERT_REQUIRED if always else ssl.CERT_OPTIONAL),
                self._context(ssl.CERT_REQUIRED if always else ssl.CERT_NONE),
                self._context(ssl.CERT_REQUIRED, server=False),
                0.0,
            )
        except (OSError, ValueError) as error:
            raise _refused(
                "certificate", config.certificate, f"does not go with tls.key = {config.key!r} or tls.ca: {error}"
            ) from None
        made.http_door.minimum_version = ssl.TLSVersion.TLSv1_2
        return made._replace(expires=self._try(made))

    def _context(self, ask: ssl.VerifyMode, *, server: bool = True) -> ssl.SSLContext:
        own = self._config
        return context(server=server, ca=own.ca, certificate=own.certificate, key=own.key, ask=ask)

    def _try(self, made: _Contexts) -> float:
        """A handshake of this node with itself. Returns when the first of its certificates expires."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = made.node_door.wrap_bio(to_server, to_client, server_side=True)
        client = made.dial.wrap_bio(to_client, to_server, server_side=False)
        try:
            for side in (client, server, client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
            client.do_handshake()
            server.do_handshake()
            certificate = server.getpeercert()
        except ssl.SSLCertVerificationError as error:
            text = f"is refused by tls.ca = {self._config.ca!r}: {error.verify_message}"
            raise _refused("certificate", self._config.certificate, text) from None
        except ssl.SSLError as error:
            raise _refused("certificate", self._config.certificate, f"cannot be used: {error}") from None
        check_node_name(certificate, self._node_id, f"tls.certificate = {self._config.certificate!r}")
        return self._first_end((certificate or {})["notAfter"], made.dial)

    def _first_end(self, own: object, dial: ssl.SSLContext) -> float:
        """Of its own certificate, those between it and the authority, which are in the same file, and the authorities.
        An authority that has expired is left out: it is kept beside the one that took its place, or the handshake had
        failed."""
        between = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        between.load_verify_locations(cafile=self._config.certificate)
        ends = [_seconds(one["notAfter"]) for one in between.get_ca_certs()]
        now = self._wall()
        authorities = [_seconds(one["notAfter"]) for one in dial.get_ca_certs()]
        return min([_seconds(own), *ends, *(end for end in authorities if end > now)])


def _seconds(told: object) -> float:
    return float(ssl.cert_time_to_seconds(str(told)))


def _refused(name: str, path: str, why: str) -> ConfigError:
    return ConfigError(f"tls.{name} = {path!r} {why}", field=f"tls.{name}")
