"""python -m proof.packages: two builds of wheel and sdist are equal, and a node runs from the wheel alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("src", "docs", "deploy", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
CHECK = """
import asyncio, tempfile
from needle import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.server.http import pages

assert {"/docs", "/ui", "/ui/app.js", "/ui/runbooks.json"} <= {page.path for page in pages.routes()}

async def main():
    with tempfile.TemporaryDirectory() as directory:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        config = RaftConfig(node_id="n1", cluster_nodes=[f"n1={address}"], data_dir=directory, dimensions=2)
        async with RaftCluster(config) as node:
            await node.wait_ready(60)
            await node.insert("a", [1.0, 0.0])
            assert [hit.id for hit in await node.search([1.0, 0.0], 1)] == ["a"]

asyncio.run(main())
"""


def built(directory: Path, epoch: int) -> dict[str, str]:
    """Builds from a copy of the sources; the checksums by file name. epoch: for SOURCE_DATE_EPOCH."""
    copy = directory / "sources"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copyfile(
            source, copy / name
        )
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    command = [sys.executable, "-m", "build", "--outdir", str(directory / "dist"), str(copy)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((directory / "dist").iterdir())}


def check_files(wheel: Path) -> None:
    """All files of the package are in it: pages of the dashboard, types. Raises RuntimeError."""
    package = ROOT / "src" / "needle"
    wanted = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file()}
    missing = sorted(name for name in wanted - set(zipfile.ZipFile(wheel).namelist()) if not name.endswith(".pyc"))
    if missing:
        raise RuntimeError(f"the wheel lacks {missing}")


def run(wheel: Path, directory: Path) -> None:
    """An environment with nothing but the wheel and what it needs; a node in it takes a write and a search."""
    venv.create(directory, with_pip=True)
    python, needle = (str(directory / "bin" / name) for name in ("python", "needle"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[server]"], check=True, timeout=300)
    subprocess.run([python, "-c", CHECK], check=True, cwd=directory, timeout=120)
    subprocess.run([needle, "--version"], check=True, cwd=directory, timeout=120)


def main() -> None:
    """Exit code 0 if all is well; an exception with the reason otherwise."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-packages-") as directory:
        rounds = []
        for number in range(2):
            one = Path(directory, str(number))
            one.mkdir()
            rounds.append(built(one, epoch=1_700_000_000))
        if rounds[0] != rounds[1]:
            raise RuntimeError(f"two builds of the same sources differ: {rounds}")
        for name, checksum in rounds[0].items():
            print(f"{checksum}  {name}", flush=True)
        wheel = next(name for name in rounds[0] if name.endswith(".whl"))
        check_files(Path(directory, "0", "dist", wheel))
        run(Path(directory, "0", "dist", wheel), Path(directory, "environment"))
    print(f"done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
