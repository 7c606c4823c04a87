"""Whether a client can be installed without a compiler where clients run: asks PyPI, and installs nothing.

python -m proof.platforms
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PLATFORMS = (
    *("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "musllinux_1_2_x86_64"),
    *("macosx_14_0_arm64", "macosx_14_0_x86_64", "win_amd64"),
)
PYTHONS = ("3.11", "3.13")


def resolved(platform: str, python: str, needs: list[str]) -> list[str]:
    """The wheels that would be installed, by name and version. Raises CalledProcessError with pip's words."""
    with tempfile.TemporaryDirectory() as nowhere:
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"]
        command += ["--target", nowhere, "--only-binary", ":all:", "--platform", platform, "--python-version", python]
        done = subprocess.run([*command, *needs], capture_output=True, text=True, check=True)
    return [f"{one['metadata']['name']} {one['metadata']['version']}" for one in json.loads(done.stdout)["install"]]


def main() -> int:
    """The number of places where a client cannot be installed."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    missing = 0
    for platform in PLATFORMS:
        for python in PYTHONS:
            try:
                print(f"{platform:24} {python:5} {', '.join(resolved(platform, python, project['dependencies']))}")
            except subprocess.CalledProcessError as error:
                missing += 1
                print(f"{platform:24} {python:5} NOT INSTALLABLE\n{error.stderr}")
    return missing


if __name__ == "__main__":
    sys.exit(main())
