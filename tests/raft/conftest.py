"""The option that lets the trace tests write down what the core does now (see test_traces.py)."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-traces", action="store_true", help="write the output of tests/raft/traces/*.txt again")
