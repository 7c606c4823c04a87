"""The chart's pods as processes of this machine: each runs the chart's own start script with the variables and the
settings that Kubernetes would give it, addresses and directories of this machine put in their place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from needle.client import Client
from needle.connecting import connect
from needle.local.free_ports import free_ports
from proof.deployment.chart import Object
from proof.deployment.secret import ran

SECONDS = 60.0


class Pods:
    """directory: for their data and logs. objects: what Helm rendered. secret: the files of the Secret of certificates,
    for a chart with keys and TLS."""

    def __init__(self, directory: Path, objects: dict[tuple[str, str], Object], secret: Path | None = None) -> None:
        self._spec = _container(objects["StatefulSet", "needle"])
        self._archive = _container(objects["Deployment", "needle-archive"])
        self._files = objects["ConfigMap", "needle"]["data"]
        self._directory, self._tls = directory, secret
        self._keys = {"cluster-secret": os.urandom(32).hex()}
        self._given: dict[int, dict[str, str]] = {}
        self._noted: dict[int, bool] = {}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: dict[int, tuple[int, int]] = {}

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{self._ports[number][0]}" for number in self._running]

    def start(self, numbers: Sequence[int]) -> None:
        """Pods by their numbers, at once."""
        free = iter(free_ports(2 * len(numbers)))
        self._ports.update({number: (next(free), next(free)) for number in numbers})
        for number in numbers:
            self._start(number)

    def _start(self, number: int) -> None:
        home = self._directory / f"needle-{number}"
        home.mkdir()
        for name, text in self._files.items():
            (home / name).write_text(self._here(text, home), encoding="utf-8")
        self._run(number, home)

    def _environment(self, number: int, home: Path) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {name: value for name, value in os.environ.items() if not name.startswith("NEEDLE_")}
        return given | self._variables(number, home) | {"PATH": path}

    def _run(self, number: int, home: Path) -> None:
        # It dies with this process. Its group is ended as a container is: the script waits in a shell of its own, too.
        command = ["setpriv", "--pdeathsig", "KILL", "sh", str(home / "start.sh")]
        self._given[number] = self._environment(number, home)  # a key that comes later, the next pod has
        with (home / "log").open("ab") as log:
            self._running[number] = subprocess.Popen(
                command, env=self._given[number], stdout=log, stderr=log, start_new_session=True
            )

    def _variables(self, number: int, home: Path) -> dict[str, str]:
        port, http = self._ports[number]
        found = self._told(self._spec["env"], home)
        found |= {"NEEDLE_NODE_ID": f"needle-{number}", "NEEDLE_LISTEN": f"127.0.0.1:{port}"}
        found |= {"NEEDLE_ADVERTISE": f"127.0.0.1:{port}", "NEEDLE_HTTP_ADDRESS": f"127.0.0.1:{http}"}
        return found

    def _told(self, variables: Sequence[Object], home: Path) -> dict[str, str]:
        """What they are, those of a Secret too; an optional one that is not there is left out."""
        found: dict[str, str] = {}
        for one in variables:
            if "value" in one:
                found[one["name"]] = self._here(str(one["value"]), home)
            elif (of := one["valueFrom"].get("secretKeyRef")) is not None:
                if of["key"] in self._keys:
                    found[one["name"]] = self._keys[of["key"]]
                elif not of.get("optional"):
                    raise RuntimeError(f"the Secret has no {of['key']!r}, and the pod does not start without it")
        return found

    def _here(self, text: str, home: Path) -> str:
        """Names and paths of a pod as those of this machine."""
        text = re.sub(
            r"needle-(\d+)\.needle-nodes\.default\.svc:\d+",
            lambda found: f"127.0.0.1:{self._ports[int(found[1])][0]}",
            text,
        )
        places = {} if self._tls is None else {"/etc/needle-tls": self._tls}
        places |= {"/etc/needle": home, "/run/needle": home / "run", "/var/lib/needle": home / "data"}
        for path, place in places.items():
            text = text.replace(path, str(place))
        return text

    def probe(self, number: int) -> str:
        """Where Kubernetes asks whether a pod is alive."""
        return self._url(number, "livenessProbe")

    def _url(self, number: int, probe: str) -> str:
        asked = self._spec[probe]["httpGet"]
        return f"{asked['scheme'].lower()}://127.0.0.1:{self._ports[number][1]}{asked['path']}"

    def wait_ready(self) -> None:
        """Until the probe of every pod says so. Raises TimeoutError with a pod's log."""
        for number, process in self._running.items():
            until = time.monotonic() + SECONDS
            while not _answers(self._url(number, "readinessProbe")):
                log = (self._directory / f"needle-{number}" / "log").read_text(encoding="utf-8")[-2000:]
                if process.poll() is not None or time.monotonic() > until:
                    raise TimeoutError(f"needle-{number} is not ready:\n{log}")
                time.sleep(0.1)

    def make_key(self) -> None:
        """The first key, as NOTES.txt says, put into the Secret: pods that are started from now on have it."""
        home = self._directory / "needle-0"
        said = ["keys", "create", "ops", "--role", "admin", "--config", str(home / "node.json"), "--json"]
        self._keys["api-key"] = json.loads(ran(["needle", *said], self._given[0]))["key"]

    async def _connect(self) -> Client:
        ca = False if self._tls is None else str(self._tls / "ca.crt")
        return await connect(self.addresses, api_key=self._keys.get("api-key", ""), tls=ca)

    async def nodes(self) -> list[str]:
        """The names of the cluster's nodes, once a document was written and read."""
        async with await self._connect() as client:
            await client.insert("a", [1.0] * 256)
            if await client.get("a") is None:
                raise RuntimeError("a document that was written is not there")
            return sorted(info.id for info in (await client.refresh_topology()).nodes)

    def archive(self) -> None:
        """Run the archive's pod, into a directory, until it leads to an instant. Raises TimeoutError with its log."""
        target = self._directory / "archive"
        program, *command, _ = self._archive["command"]
        command = [str(Path(sys.executable).parent / program), *command, str(target)]
        names = self._told(self._archive["env"], target)
        with (self._directory / "archive.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=dict(os.environ) | names, stdout=log, stderr=log
            )
        try:
            until = time.monotonic() + SECONDS
            while not _instants(target):
                if process.poll() is not None or time.monotonic() > until:
                    log_text = (self._directory / "archive.log").read_text(encoding="utf-8")[-2000:]
                    raise TimeoutError(f"the archive leads to no instant:\n{log_text}")
                time.sleep(0.5)
        finally:
            process.terminate()
            process.wait(SECONDS)

    def restart(self, number: int) -> None:
        """End one pod as Kubernetes does, and start the next one on its volume."""
        home, process = self._directory / f"needle-{number}", self._running[number]
        _, script = self._spec["lifecycle"]["preStop"]["exec"]["command"]
        script = self._here(script, home)
        subprocess.run(["sh", script], env=self._given[number], timeout=SECONDS, check=True)
        self._noted[number] = (home / "data" / "pod-maintenance.json").exists()
        process.terminate()
        process.wait(SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._run(number, home)

    def noted(self, number: int) -> bool:
        """Whether the pod that ended last had put its node into maintenance."""
        return self._noted[number]

    def wait_resting(self, number: int, wanted: bool) -> None:
        """Until the catalog says that a pod's node is in maintenance, or no more. Raises TimeoutError."""
        until = time.monotonic() + SECONDS
        while asyncio.run(self._resting(number)) != wanted:
            if time.monotonic() > until:
                raise TimeoutError(f"needle-{number} is {'not ' * wanted}in maintenance")
            time.sleep(0.2)

    async def _resting(self, number: int) -> bool:
        async with await self._connect() as client:
            info = (await client.refresh_topology(confirmed=True, timeout=SECONDS)).node(f"needle-{number}")
            return info is not None and bool(info.maintenance)

    async def maintain(self, number: int, on: bool) -> None:
        """As an operator does."""
        async with await self._connect() as client:
            ask = client.enter_maintenance_mode if on else client.exit_maintenance_mode
            await ask(f"needle-{number}", timeout=SECONDS)

    def stop(self) -> None:
        """End them in order, within the time that the chart gives them."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _container(of: Object) -> Object:
    found: Object = of["spec"]["template"]["spec"]["containers"][0]
    return found


def _instants(target: Path) -> bool:
    """Whether `needle backup list` knows instants that can be restored."""
    argv = [str(Path(sys.executable).parent / "needle"), "backup", "list", str(target), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and any(one["until"] for one in json.loads(done.stdout)["archives"])


def _answers(url: str) -> bool:
    try:
        unproven = ssl._create_unverified_context()  # a kubelet looks at no certificate
        with urllib.request.urlopen(url, timeout=5, context=unproven) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_alive(url: str) -> None:
    until = time.monotonic() + SECONDS
    while not _answers(url):
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not answer")
        time.sleep(0.1)


def open_trial(pods: Pods) -> None:
    """Three pods found a cluster without keys and TLS. Raises RuntimeError or TimeoutError."""
    try:
        pods.start([0, 1, 2])
        pods.wait_ready()
        _need_nodes(pods, 3)
    finally:
        pods.stop()


def trial(pods: Pods) -> None:
    """Three pods with keys and TLS found a cluster, a fourth joins, the archive's reads it with the first key; a pod
    that is replaced, which has no key but the nodes' secret, is back in service, and one that has a key and that an
    operator had put into maintenance is not. Raises RuntimeError or TimeoutError."""
    try:
        for numbers in ([0, 1, 2], [3]):
            pods.start(numbers)
            pods.wait_ready()
        pods.make_key()
        _need_nodes(pods, 4)
        pods.archive()
        pods.restart(1)
        if not pods.noted(1):
            raise RuntimeError("a pod that ends has not begun maintenance")
        pods.wait_resting(1, False)
        pods.wait_ready()
        asyncio.run(pods.maintain(1, True))
        pods.restart(1)
        if pods.noted(1):
            raise RuntimeError("a pod that ends has noted as its own what an operator began")
        _wait_alive(pods.probe(1))
        pods.wait_resting(1, True)
        asyncio.run(pods.maintain(1, False))
        pods.wait_ready()
    finally:
        pods.stop()


def _need_nodes(pods: Pods, count: int) -> None:
    if (found := asyncio.run(pods.nodes())) != [f"needle-{number}" for number in range(count)]:
        raise RuntimeError(f"the cluster has the nodes {found}")
