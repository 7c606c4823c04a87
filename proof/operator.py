"""Runs `needle` commands as processes of their own, as an operator does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

COMMAND_SECONDS = 300.0


class Operator:
    """environment: what commands get beside that of this process. say: is told of each command and its last line."""

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None] = lambda _: None) -> None:
        self.environment = {**os.environ, **environment}
        self._say = say

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command."""
        command = [sys.executable, "-m", "needle", *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, *words: str, expect: int = 0) -> str:
        """What a command says. Raises AssertionError if it ends otherwise than expected."""
        with self.popen(*words) as process:
            try:
                out, err = process.communicate(timeout=COMMAND_SECONDS)
            finally:
                process.kill()  # one that hangs would be waited for without end
        assert process.returncode == expect, f"{' '.join(words)}: {process.returncode} {out}{err}"
        self._say(f"  {' '.join(words[:3])}: {(err or out).strip().splitlines()[-1][:150] if err or out else 'ok'}")
        return out + err

    def json(self, *words: str) -> Any:
        """What it says as JSON."""
        return json.loads(self.run(*words, "--json").splitlines()[0])
