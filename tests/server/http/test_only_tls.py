"""Callers without TLS where it is required: told so, a few at a time, and seldom in the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from needle.base.news import News
from needle.server.http import no_requests
from needle.server.http.no_requests import REFUSING_MAX, OnlyTls


class Transport:
    def __init__(self, host: str) -> None:
        self.host = host
        self.sent = b""
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return (self.host, 1) if name == "peername" else None

    def write(self, data: bytes) -> None:
        self.sent += data

    def write_eof(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


async def test_plain_callers_are_told_a_few_at_a_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_requests, "_said", News())
    made = []
    with caplog.at_level(logging.WARNING, "needle.server"):
        for n in range(3 * REFUSING_MAX):
            transport = Transport("10.0.0.1" if n % 2 else "10.0.0.2")
            protocol = OnlyTls()
            protocol.connection_made(transport)  # type: ignore[arg-type]
            made.append((protocol, transport))
    assert all(b"https://" in transport.sent for _, transport in made)
    assert [transport.aborted for _, transport in made] == [True] * 2 * REFUSING_MAX + [False] * REFUSING_MAX
    assert len(OnlyTls._told) == REFUSING_MAX
    assert len([one for one in caplog.records if "speaks TLS only" in one.getMessage()]) == 2
    for protocol, _ in made:
        protocol.connection_lost(None)
    assert OnlyTls._told == {}


async def test_two_reasons_in_turn_are_said_once_each(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_requests, "_said", News())
    with caplog.at_level(logging.WARNING, "needle.server"):
        for n in range(20):
            no_requests.tls_failed(f"10.0.0.1:{n}", "one reason" if n % 2 else "another")
    assert len(caplog.messages) == 2
