"""What `make prometheus` is told to watch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from proof.alerts.prometheus import configure
from proof.alerts.promtool import RULES
from proof.alerts.watch import address, watched


def test_nodes_are_named_with_commas_between_them() -> None:
    assert watched("127.0.0.1:6001, db-0:6002,") == ["127.0.0.1:6001", "db-0:6002"]


@pytest.mark.parametrize("text", ["", " , ", "6001", "http://127.0.0.1:6001", "127.0.0.1:6001,db-0", "db-0:0"])
def test_what_names_no_node_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"name at least one node|allowed"):
        watched(text)
    with pytest.raises(argparse.ArgumentTypeError, match="allowed"):
        address(text)


def test_it_judges_by_the_rules_as_they_are_delivered(tmp_path: Path) -> None:
    rules = RULES.read_text()
    configure(tmp_path / "new", ["127.0.0.1:6001"], rules, job="needle", every=5)
    assert (tmp_path / "new" / "needle.rules.yml").read_text() == rules
    config = json.loads((tmp_path / "new" / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["job_name"] == "needle"
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:6001"]}]
