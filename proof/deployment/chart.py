"""The Helm chart as Helm renders it: what it makes of values, and what it must refuse."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "needle"
KUBERNETES = ("--kube-version", "1.31.0")  # a Helm that was built from its module says 1.20 otherwise
OPEN = {"insecure": "true"}
CLOSED = {"auth.existingSecret": "keys", "tls.existingSecret": "certificates"}
WATCHED = {"monitoring.serviceMonitor.enabled": "true", "monitoring.configMaps.enabled": "true"}
RULED_ELSEWHERE = {"monitoring.serviceMonitor.rules": "false"}
ARCHIVED = {"archive.target": "s3://bucket/shop", "archive.existingSecret": "bucket"}
ACCEPTED = (
    *(OPEN, CLOSED | ARCHIVED, OPEN | {"replicas": "5"}, OPEN | ARCHIVED | {"settings.cluster_id": "shop"}),
    *(CLOSED | WATCHED, OPEN | {"zone.label": ""} | WATCHED, CLOSED | WATCHED | RULED_ELSEWHERE),
)
REFUSED = {
    "set auth.existingSecret and tls.existingSecret": {},
    "fewer than the 3 founders": OPEN | {"replicas": "2"},
    "1 to 7 nodes found a cluster": OPEN | {"founders": "9", "replicas": "9"},
    "settings.node_id is what the chart sets itself": OPEN | {"settings.node_id": "other"},
    "settings.sharding.join is what the chart sets itself": OPEN | {"settings.sharding.join": "other:5000"},
}
"""By a part of the sentence that says why."""

Object = dict[str, Any]


class Chart:
    """helm: the program."""

    def __init__(self, helm: Path) -> None:
        self._helm = helm

    def lint(self, values: dict[str, str]) -> None:
        """Raises RuntimeError with Helm's output."""
        self._ran("lint", "--strict", *KUBERNETES, str(CHART), *_set(values))

    def rendered(
        self, values: dict[str, str], release: str = "needle", namespace: str = "default"
    ) -> dict[tuple[str, str], Object]:
        """The objects by kind and name. Raises RuntimeError with Helm's output."""
        text = self._ran("template", release, "--namespace", namespace, *KUBERNETES, str(CHART), *_set(values))
        objects = [one for one in yaml.safe_load_all(text) if one]
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    def refusal(self, values: dict[str, str]) -> str:
        """What Helm says of values that cannot work. Raises RuntimeError if it takes them."""
        try:
            self._ran("template", "needle", *KUBERNETES, str(CHART), *_set(values))
        except RuntimeError as error:
            return str(error)
        raise RuntimeError(f"the chart takes {values}")

    def _ran(self, *arguments: str) -> str:
        done = subprocess.run([self._helm, *arguments], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout


def check(chart: Chart) -> None:
    """All that the chart takes and refuses. Raises RuntimeError."""
    for values in ACCEPTED:
        chart.lint(values)
        objects = chart.rendered(values)
        _check_references(objects, values)
        _check_archive(objects, values)
        _check_cluster_id(objects, values.get("settings.cluster_id"))
    for why, values in REFUSED.items():
        if why not in (said := chart.refusal(values)):
            raise RuntimeError(f"of {values} the chart says {said!r}, not {why!r}")


def _check_references(objects: dict[tuple[str, str], Object], values: dict[str, str]) -> None:
    """What one object says of another is there: volumes, services, accounts, ports, labels."""
    pods = objects["StatefulSet", "needle"]["spec"]
    pod = pods["template"]["spec"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    kept = {one["metadata"]["name"] for one in pods["volumeClaimTemplates"]}
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    mounted = {one["name"] for container in containers for one in container["volumeMounts"]}
    _equal("volumes that are mounted", mounted, set(volumes) | kept)
    _need(("ConfigMap", volumes["settings"]["configMap"]["name"]) in objects, "the settings are no ConfigMap")
    _need(("ServiceAccount", pod["serviceAccountName"]) in objects, "the service account is not made")
    _need(("Service", pods["serviceName"]) in objects, "the service of the nodes' names is not made")
    _need(pod["enableServiceLinks"] is False, "a node refuses the variables of service links")
    labels = pods["template"]["metadata"]["labels"].items()
    ports = {one["name"] for one in pod["containers"][0]["ports"]}
    for (kind, name), one in objects.items():
        if kind == "Service":
            _need(one["spec"]["selector"].items() <= labels, f"{name} selects no pod")
            _need({port["targetPort"] for port in one["spec"]["ports"]} <= ports, f"{name} has a port that no pod has")
    if (monitor := objects.get(("ServiceMonitor", "needle"))) is not None and "auth.existingSecret" in values:
        shown = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
        _equal("what Prometheus shows", shown, {"name": "keys", "key": "metrics-key"})
    watched = {("PrometheusRule", "needle"), ("ServiceMonitor", "needle"), ("ConfigMap", "needle-rules")}
    asked = WATCHED.items() <= values.items() and RULED_ELSEWHERE.items() - values.items()
    _need((watched <= objects.keys()) == bool(asked), "rules are where nobody asked for them")
    for key in watched & objects.keys() - {("ServiceMonitor", "needle")}:
        text = objects[key].get("data", {}).get("needle.rules.yml")
        groups = (objects[key]["spec"] if text is None else yaml.safe_load(text))["groups"]
        _need(any("{{ $labels" in str(rule) for rule in groups[0]["rules"]), "the rules' own templates were executed")


def _check_archive(objects: dict[tuple[str, str], Object], values: dict[str, str]) -> None:
    """The archive is there if it is asked for, and nothing that selects the nodes' pods selects its own."""
    found = objects.get(("Deployment", "needle-archive"))
    _need((found is not None) == (ARCHIVED.items() <= values.items()), "an archive that nobody asked for, or none")
    if found is None:
        return
    pod, labels = found["spec"]["template"]["spec"], found["spec"]["template"]["metadata"]["labels"].items()
    _need(found["spec"]["selector"]["matchLabels"].items() <= labels, "the archive does not select its pod")
    for kind, name in objects.keys() - {("Deployment", "needle-archive")}:
        one = objects[kind, name].get("spec", {}).get("selector", {})
        selected = one.get("matchLabels", one).items()
        _need(not selected or not selected <= labels, f"{kind} {name} selects the archive's pod")
    mounted = {one["name"] for one in pod["containers"][0]["volumeMounts"]}
    _equal("volumes of the archive", mounted, {one["name"] for one in pod["volumes"]})


def _check_cluster_id(objects: dict[tuple[str, str], Object], wanted: str | None) -> None:
    """Commands in pods, as those that begin and end maintenance, take the cluster for the one that the nodes are of."""
    for kind, name in objects.keys() & {("StatefulSet", "needle"), ("Deployment", "needle-archive")}:
        env = objects[kind, name]["spec"]["template"]["spec"]["containers"][0]["env"]
        _equal(
            f"cluster of {name}",
            [one["value"] for one in env if one["name"] == "NEEDLE_CLUSTER_ID"],
            [wanted] * bool(wanted),
        )


def _set(values: dict[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _equal(what: str, one: object, other: object) -> None:
    _need(one == other, f"{what}: {one}, not {other}")
