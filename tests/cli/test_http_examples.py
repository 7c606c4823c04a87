"""The curl commands of docs/http.md and of the README run as they stand, and are answered."""

import json
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]


def has_curl() -> bool:
    """One that knows `--json`."""
    if shutil.which("curl") is None:
        return False
    told = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, told.split()[1].split(".")[:2])) >= (7, 82)


def curl(command: str) -> tuple[int, str]:
    """By curl itself."""
    asked = [*shlex.split(command), "-s", "-w", "\n%{http_code}"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    text, _, status = told.rpartition("\n")
    return int(status), text


def ask(command: str) -> tuple[int, str]:
    """What curl would do, for machines that have none."""
    words = shlex.split(command)[1:]
    method, body, address = "GET", None, ""
    headers = {}
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "--json":
            body = words.pop(0).encode()
            headers["content-type"] = "application/json"
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        else:
            address = word
    request = urllib.request.Request(f"http://{address}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("run", [curl, ask])
@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_examples_are_answered(needle, page: str, run) -> None:
    if run is curl and not has_curl():
        pytest.skip("there is no curl of 7.82 or later")
    found = commands(page)
    assert len(found) >= 3
    answers = {}
    for command in found:
        for port, node in zip((6001, 6002, 6003), needle.cluster.nodes.values(), strict=True):
            command = command.replace(f"localhost:{port}", node.http)
        command = command.replace("idempotency-key: ", f"idempotency-key: {run.__name__}-")  # each runs them once
        status, text = run(command)
        assert status == 200, (command, text)
        answers[command.partition(" --json")[0].rpartition("/")[2]] = text
    if page == "README.md":
        assert json.loads(answers["search"])["hits"][0]["id"] == "vienna"
        assert run(f"curl -X DELETE {next(iter(needle.cluster.nodes.values())).http}/v1/collections/towns")[0] == 200
    else:
        assert json.loads(answers["n1"])["metadata"] == {"tags": ["read"]}  # executed once
