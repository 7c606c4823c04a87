"""The README's Python runs as it stands, against a real cluster, and prints what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_python_example_does_what_it_says(needle) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    expected = re.findall(r"print\(.*\)  # (.+)$", program, re.MULTILINE)
    assert len(expected) == 3
    for port, address in zip((5001, 5002, 5003), needle.cluster.addresses.values(), strict=True):
        assert program.count(f"127.0.0.1:{port}") == 1
        program = program.replace(f"127.0.0.1:{port}", address)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == expected


def test_the_first_commands_are_the_makefiles() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
