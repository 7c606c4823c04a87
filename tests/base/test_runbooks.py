"""The address of runbooks that a node tells."""

from __future__ import annotations

from typing import Any

import pytest

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError
from needle.base.runbooks import runbooks_of

TLS = {"mode": "require", "certificate": "a", "key": "b", "ca": "c"}


def config(**settings: Any) -> RaftConfig:
    return RaftConfig(**{"node_id": "n", "data_dir": "d", "listen": "10.0.0.1:5000", **settings})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ""),
        ({"http_address": "10.0.0.1:9090"}, "http://10.0.0.1:9090/ui#/runbooks/"),
        ({"http_address": "10.0.0.1:9090", "http_api": False}, ""),
        ({"http_address": "0.0.0.0:9090", "advertise": "db-0.db:5000"}, "http://db-0.db:9090/ui#/runbooks/"),
        ({"http_address": "[::]:9090", "advertise": "[fd00::1]:5000"}, "http://[fd00::1]:9090/ui#/runbooks/"),
        ({"http_address": "db-0:9090", "tls": TLS}, "https://db-0:9090/ui#/runbooks/"),
        ({"runbooks": "https://x.org/alerts.html"}, "https://x.org/alerts.html#"),
        ({"http_address": "a:1", "runbooks": "https://x.org/#/alerts/"}, "https://x.org/#/alerts/"),
    ],
)
def test_runbooks_are_where_the_setting_says_or_on_the_node(settings: dict[str, Any], told: str) -> None:
    assert runbooks_of(config(**settings)) == told


@pytest.mark.parametrize("page", ["docs/alerts.md", "ftp://x.org/", "https://x.org/a b", 'https://x.org/"'])
def test_what_is_no_address_is_refused(page: str) -> None:
    with pytest.raises(ConfigError, match=r"runbooks = .*begins with http"):
        config(runbooks=page)
