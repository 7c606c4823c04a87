"""A bulk load of a file with named vectors: refused, as it would load documents without them."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from needle.base.errors import InvalidArgument
from needle.cli.bulk.pieces import pieces_of


def test_a_column_of_a_named_vector_is_refused(tmp_path: Path) -> None:
    columns = {"id": ["a"], "vector": [[1.0, 2.0]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert pieces_of(str(tmp_path / "a.parquet"))[1] == 2
    pyarrow.parquet.write_table(pyarrow.table(columns | {"vector:title": [[1.0]]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidArgument, match="vector:title is not allowed") as caught:
        pieces_of(str(tmp_path / "b.parquet"))
    assert "b.parquet" in caught.value.message
