"""Commands of the documents, as they stand there: `needle` runs in this process; `ssh HOST systemctl VERB needle@NODE`
does that to a process of this machine."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from pathlib import Path

from harness.commands import Run
from needle.local.process_cluster import ProcessCluster

DOCS = Path(__file__).resolve().parents[2] / "docs"
SSH = """#!/bin/sh
# ssh HOST ... systemctl VERB... needle@NODE, in one word or several, as an operator's machines would have it
words="$*"
verb="${words##*systemctl }"
echo "${verb%% *} ${words##*needle@}" > DIRECTORY/$$.new
mv DIRECTORY/$$.new DIRECTORY/$$.asked
until [ -e DIRECTORY/$$.done ]; do sleep 0.05; done
"""


def chapter(page: str, name: str) -> str:
    """The text of a chapter of a page in docs/."""
    chapters = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL))
    return chapters[name]


def blocks(text: str) -> list[str]:
    """The blocks of commands in it."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def between_blocks(page: str) -> set[str]:
    """The commands that stand in the text of a page, outside of blocks."""
    text = re.sub(r"^ *```.*?^ *```", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return {" ".join(one.split()) for one in re.findall(r"`(needle [^`]+)`", text)}


class PageCommands:
    """The page's world: node-N is at 10.0.0.N there, and a process of this machine here. directory: of this alone, the
    first in PATH. verbs: what systemd was asked for."""

    def __init__(self, cluster: ProcessCluster, directory: Path, run: Run) -> None:
        self.cluster, self.directory, self.run = cluster, directory, run
        self.verbs: list[str] = []
        (directory / "ssh").write_text(SSH.replace("DIRECTORY", str(directory)))
        (directory / "ssh").chmod(0o755)

    def words(self, text: str) -> list[str]:
        """The words of a line, with the addresses that nodes have here."""
        here = re.sub(r"10\.0\.0\.(\d):5000", lambda found: self.cluster.addresses[f"node-{found[1]}"], text)
        return shlex.split(here, comments=True)

    async def line(self, text: str, expect: int | None = 0) -> str:
        """What a line prints. expect: its exit code; None for any. It runs in a thread, and what ssh is asked meanwhile
        is done here: a node ends with the thread that started it."""
        words = self.words(text)
        task = asyncio.ensure_future(asyncio.to_thread(self.command, words, expect))
        while not task.done():
            for asked in self.directory.glob("*.asked"):
                verb, node = asked.read_text().split()
                await self._systemctl(verb, node)
                asked.rename(asked.with_suffix(".done"))
            await asyncio.wait([task], timeout=0.05)
        return await task

    def command(self, words: list[str], expect: int | None) -> str:
        """Of one line; in a thread."""
        if words[0] == "ssh":
            subprocess.run([self.directory / "ssh", *words[1:]], check=True, timeout=60)
            return ""
        assert words[0] == "needle", words
        return self.run(*words[1:], expect=expect)

    async def _systemctl(self, verb: str, node: str) -> None:
        self.verbs.append(f"{verb} {node}")
        if verb in ("stop", "restart", "disable"):
            await asyncio.to_thread(self.cluster.terminate, node)
        if verb in ("start", "restart"):
            self.cluster.restart(node)
