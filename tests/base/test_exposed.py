"""Settings of who may come in: what is refused, and that a secret is not shown."""

from __future__ import annotations

from typing import Any

import pytest

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError
from needle.base.exposure import check_exposed
from needle.server.process.config_file import resolve

SECRET = "0123456789abcdef" * 2
KEYS: dict[str, Any] = {"require_keys": True, "cluster_secret": SECRET}
TLS = {"mode": "require", "certificate": "c", "key": "k", "ca": "a"}


def config(**given: Any) -> RaftConfig:
    return RaftConfig(**{"node_id": "n1", "data_dir": "d", "listen": "127.0.0.1:1", **given})


@pytest.mark.parametrize(
    ("listen", "http", "outside"),
    [
        ("127.0.0.1:1", None, ""),
        ("127.8.9.1:1", "127.0.0.1:2", ""),
        ("localhost:1", "[::1]:2", ""),
        ("0.0.0.0:1", None, "listen"),
        ("10.0.0.1:1", "127.0.0.1:2", "listen"),
        ("[::]:1", None, "listen"),
        ("node-1:1", None, "listen"),
        ("127.0.0.1.example.org:1", None, "listen"),
        ("127.0.0.1:1", "0.0.0.0:2", "http_address"),
    ],
)
def test_who_listens_beyond_this_machine_has_keys_and_tls_or_says_that_it_does_not_mind(
    listen: str, http: str | None, outside: str
) -> None:
    given = {"listen": listen, "http_address": http}
    if outside:
        with pytest.raises(ConfigError, match=f'{outside} = .*require_keys.*tls.mode = "require".*insecure = true'):
            check_exposed(config(**given))
        with pytest.raises(ConfigError, match=f'{outside} = .*reads the network.*set tls.mode = "require" .*insecure'):
            check_exposed(config(**given, **KEYS))
        with pytest.raises(ConfigError, match=f"{outside} = .*everything: set require_keys = true .*insecure"):
            check_exposed(config(**given, tls=TLS))
        with pytest.raises(ConfigError, match=f"{outside} = "):
            check_exposed(config(**given, **KEYS, tls={**TLS, "mode": "accept"}))
    else:
        check_exposed(config(**given))
    check_exposed(config(**given, insecure=True))
    check_exposed(config(**given, **KEYS, tls=TLS))


def test_keys_cannot_be_required_without_a_way_in_for_nodes() -> None:
    with pytest.raises(ConfigError, match="cluster_secret"):
        config(require_keys=True)


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="5 characters") as refused:
        config(cluster_secret="abcde")
    assert "abcde" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({"cluster_secret": int("12345678" * 5)}, {}),
        ({"cluster_secret": ["12345678"]}, {}),
        ({"cluster_secrett": "12345678"}, {}),
        ({}, {"NEEDLE_SECRET": "12345678"}),
        ({}, {"NEEDLE_APIKEY": "12345678"}),
    ],
)
def test_a_secret_is_not_shown_though_its_name_or_its_type_is_wrong(
    given: dict[str, Any], variables: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="is not allowed: ") as refused:
        resolve({"node_id": "n1", "data_dir": "d", "listen": "127.0.0.1:1", **given}, variables, {})
    assert "12345678" not in str(refused.value)


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_tls_needs_all_its_files(name: str) -> None:
    with pytest.raises(ConfigError, match=f"tls.mode = accept needs the setting tls.{name}"):
        config(tls={**TLS, "mode": "accept", name: ""})


def test_a_mode_of_tls_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tls.mode = 'on' .*off, accept, require"):
        config(tls={"mode": "on"})
