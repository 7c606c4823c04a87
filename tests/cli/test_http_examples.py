"""The curl commands of docs/http.md and of the README run as they stand, and are answered."""

import json
import re
import shlex
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]


def ask(command: str) -> tuple[int, str]:
    """What curl would do: the machine may have none."""
    words = shlex.split(command)[1:]
    method, body, address = "GET", None, ""
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "--json":
            body = words.pop(0).encode()
        else:
            address = word
    headers = {"content-type": "application/json"} if body is not None else {}
    request = urllib.request.Request(f"http://{address}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_examples_are_answered(needle, page: str) -> None:
    found = commands(page)
    assert len(found) >= 3
    answers = {}
    for command in found:
        for port, node in zip((6001, 6002, 6003), needle.cluster.nodes.values(), strict=True):
            command = command.replace(f"localhost:{port}", node.http)
        status, text = ask(command)
        assert status == 200, (command, text)
        answers[command.partition(" --json")[0].rpartition("/")[2]] = text
    if page == "README.md":
        assert json.loads(answers["search"])["hits"][0]["id"] == "vienna"
