"""python -m proof.ui [--short]: the dashboard of real nodes in a headless Chromium; pictures in build/ui."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright

from needle.local.process_cluster import ProcessCluster
from proof.ui import views
from proof.ui.busy import busy
from proof.ui.busy import view as busy_view
from proof.ui.looking import WIDTHS, looking
from proof.ui.site import closed, fill

SHOTS = Path("build/ui")
SCHEMES = ("light", "dark")
CALM: dict[str, Any] = {"election_timeout": 0.5, "heartbeat_interval": 0.1}


async def opened(browser: Browser, directory: Path, short: bool) -> None:
    """Three nodes, of which one dies, and then the one behind the page."""
    async with ProcessCluster(directory, 3, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        nodes = list(cluster.nodes)
        base = f"http://{cluster.nodes[nodes[0]].http}"
        looks = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
        for width, scheme in [looks[0], looks[3]] if short else looks:
            async with looking(browser, base, SHOTS, width, scheme) as look:
                more = () if short and width == 390 else (views.documents, views.far)
                for view in (views.cluster, views.collections, views.search, *more):
                    await view(look)
                    print(f"{width} {scheme}: {view.__name__}", flush=True)
        async with looking(browser, base, SHOTS, 1280, "light") as look:
            await views.keyboard(look)
        cluster.kill(nodes[2])
        for width, scheme in [looks[2]] if short else looks:
            async with looking(browser, base, SHOTS, width, scheme) as look:
                await views.a_node_that_is_gone(look, nodes[2])
                print(f"{width} {scheme}: a node that is gone", flush=True)
        async with looking(browser, base, SHOTS, 1280, "dark") as look:
            await look.go("#/", ".verdict")
            cluster.kill(nodes[0])
            await views.silence(look)
        print("keyboard, and a node that is silent", flush=True)


async def run(directory: Path, short: bool) -> None:
    """All of it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        await opened(browser, directory / "opened", short)
        looks = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
        async with busy(directory / "busy") as address:
            for width, scheme in [looks[0], looks[3]] if short else looks:
                async with looking(browser, address, SHOTS, width, scheme) as look:
                    await busy_view(look)
            print("a cluster that moves data, and a follower that is behind", flush=True)
        async with closed(directory / "closed") as site:
            for width, scheme in ((1280, "light"),) if short else ((1280, "dark"), (390, "light")):
                async with looking(browser, site.address, SHOTS, width, scheme) as look:
                    await views.keys(look, site)
            print("keys and TLS", flush=True)
        await browser.close()


def main() -> None:
    """Exit code 0 if all is as it should be; an exception with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m proof.ui")
    parser.add_argument(
        "--short", action="store_true", help="each view at one width and scheme or two: for each change"
    )
    short = parser.parse_args().short
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-ui-") as directory:
        for name in ("opened", "busy", "closed"):
            (Path(directory) / name).mkdir()
        asyncio.run(run(Path(directory), short))
    print(f"{len(list(SHOTS.iterdir()))} pictures in {SHOTS}; done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
