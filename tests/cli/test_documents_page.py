"""The examples of pages run as they stand, against a real cluster, and print what their comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("page", "least"), [("documents.md", 14), ("text-search.md", 3), ("sparse-vectors.md", 4)])
def test_the_examples_do_what_they_say(needle, page: str, least: int) -> None:
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL))
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", program, re.MULTILINE)
    assert len(expected) == program.count("print(") >= least
    for port, address in zip((5001, 5002, 5003), needle.cluster.addresses.values(), strict=True):
        assert program.count(f"127.0.0.1:{port}") == 1
        program = program.replace(f"127.0.0.1:{port}", address)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == expected
