"""The Secret of a closed chart: certificates made by the commands that values.yaml tells, and the names that the chart
renders, each before a certificate of these.
"""

from __future__ import annotations

import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from needle.rpc.tls import check_node_name, context
from proof.deployment.chart import CHART, Object

FILES = {"tls.crt": "{name}-0.crt", "tls.key": "{name}-0.key", "ca.crt": "ca.crt"}
"""As `kubectl create secret` of values.yaml takes them."""


def told(name: str, namespace: str) -> list[list[str]]:
    """The commands `needle certs` of values.yaml, for a release whose objects have this name."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"^#   needle (certs .*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("NAMESPACE", namespace).replace("NAME", name)) for line in lines]


def make(directory: Path, name: str, namespace: str, hosts: Iterable[str] = ()) -> Path:
    """The Secret's files, in a directory of that name. hosts: more of them. Raises RuntimeError."""
    more = [word for host in hosts for word in ("--host", host)]
    for command in told(name, namespace):
        added = more if "create-node" in command else []
        ran(["needle", *command, *added, "--out", str(directory / "certs")])
    secret = directory / "secret"
    secret.mkdir()
    for file, made in FILES.items():
        (secret / file).write_bytes((directory / "certs" / made.format(name=name)).read_bytes())
    return secret


def ran(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program of this Python's directory prints. Raises RuntimeError with what it says."""
    argv = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def check_names(objects: dict[tuple[str, str], Object], name: str, namespace: str, secret: Path) -> None:
    """Every name at which the chart has nodes, callers and Prometheus reach a node. Raises RuntimeError."""
    pods = objects["StatefulSet", name]["spec"]
    settings = pods["template"]["spec"]["containers"][0]["env"]
    values = {one["name"]: str(one.get("value", "")) for one in settings}
    nodes = [f"{name}-{number}" for number in range(pods["replicas"])]
    addresses = [values["NEEDLE_ADVERTISE"].replace("$(NEEDLE_NODE_ID)", node) for node in nodes]
    addresses += values["NEEDLE_CLUSTER"].split(",")
    hosts = {address.rpartition(":")[0] for address in addresses}
    hosts |= {f"{key[1]}.{namespace}.svc" for key, one in objects.items() if key[0] == "Service" and _ready(one)}
    monitor = objects["ServiceMonitor", name]["spec"]["endpoints"][0]
    hosts.add(monitor["tlsConfig"]["serverName"])
    for host in sorted(hosts):
        shown = _greeted(secret, host)
    for node in nodes:
        check_node_name(shown, node, "the chart's certificate")
    if len(hosts) != len(nodes) + 1:
        raise RuntimeError(f"{sorted(hosts)}: not a name for each node, and one for callers")


def _ready(service: Object) -> bool:
    """Whether callers are to use it."""
    return bool(service["spec"].get("clusterIP") != "None")


def _greeted(secret: Path, host: str) -> dict[str, object]:
    """The certificate, once a client that asks for `host` has taken it. Raises RuntimeError."""
    ca, certificate, key = (str(secret / file) for file in ("ca.crt", "tls.crt", "tls.key"))
    server, client = (
        context(server=by, ca=ca, certificate=certificate, key=key, ask=ssl.CERT_REQUIRED, hostname=not by)
        for by in (True, False)
    )
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    door = server.wrap_bio(there, back, server_side=True)
    caller = client.wrap_bio(back, there, server_hostname=host)
    try:
        for side in (caller, door, caller, door):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        caller.do_handshake()  # raises what it has told the other side first
    except ssl.SSLError as error:
        raise RuntimeError(f"a certificate made as values.yaml says is not good for {host!r}: {error}") from None
    found = caller.getpeercert()
    if not found:
        raise RuntimeError(f"{host!r} was not greeted")
    return dict(found)
