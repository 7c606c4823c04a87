"""`python -m needle.server.process.probe [PID]`: asks the node of this machine for /livez, for the health check of a
container: by the settings that the node has, also with TLS, and at whatever port it serves.

PID: of the node's process, whose command line has settings, too; 1 in a container. Exit code 0 if the node is alive, 1
with a line that says why otherwise. Whose certificate it is, and until when, is not looked at: a restart mends neither.
It is run every few seconds: it loads what reads settings, and nothing else of the node.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from needle.base.config import SETTINGS, RaftConfig, parse_address
from needle.base.errors import ConfigError
from needle.server.process.config_file import read_file, resolve

SECONDS = 4.0
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}
CONFIG = "NEEDLE_CONFIG"


def config_of(command: Sequence[str], environment: Mapping[str, str]) -> RaftConfig:
    """The settings of a node that was started by `command`, as `needle serve --http-address 0.0.0.0:8080`. Raises
    ConfigError."""
    given = _options(command)
    file = given.pop("--config", environment.get(CONFIG, ""))
    known = {option: setting for setting in SETTINGS.values() for option in setting.option.split("/")}
    options: dict[str, Any] = {}
    for option, value in given.items():
        if (setting := known.get(option)) is None:
            continue
        if setting.kind is bool:
            options[setting.path] = option == setting.option.split("/")[0]
        elif setting.kind is not list:  # of lists no probe needs any
            options[setting.path] = setting.check(value, option, text=True)
    return resolve(read_file(Path(file)) if file else {}, environment, options)


def _options(command: Sequence[str]) -> dict[str, str]:
    """What stands behind each option of a command line: after "=", or the next word."""
    found: dict[str, str] = {}
    for word, behind in zip(command, [*command, ""][1:], strict=True):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            found[option] = value if equals else behind
    return found


def why_not_alive(config: RaftConfig) -> str:
    """Why the node is not alive, "" if it is."""
    if config.http_address is None:
        return "the node has no http_address to be asked at"
    host, port = parse_address("http_address", config.http_address)
    host = LOCAL.get(host, host)
    try:
        made = _connection(config, host, port)
        made.request("GET", "/livez")
        answer = made.getresponse()
        text = answer.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{config.http_address} does not answer: {error!r}"
    return "" if answer.status == 200 else f"{config.http_address} answers {answer.status}: {text}"


def _connection(config: RaftConfig, host: str, port: int) -> http.client.HTTPConnection:
    """Raises OSError if the node's certificate cannot be read."""
    if not config.tls.on:
        return http.client.HTTPConnection(host, port, timeout=SECONDS)
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    trusting.load_cert_chain(config.tls.certificate, config.tls.key)
    return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=trusting)


def main(arguments: Sequence[str]) -> int:
    """Its exit code."""
    command: list[str] = []
    try:
        if arguments:
            command = Path(f"/proc/{arguments[0]}/cmdline").read_bytes().decode(errors="replace").split("\0")
        why = why_not_alive(config_of(command, os.environ))
    except (ConfigError, OSError) as error:
        why = str(error)
    if why:
        sys.stderr.write(f"needle: {why}\n")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
