"""Readers of vector files: what they accept, and that what they refuse is named with its line."""

import datetime
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from needle.base.errors import InvalidArgument
from needle.cli import inputs
from needle.cli.inputs import Record, check_record, count_records, read_query_vector, read_records
from needle.client.values import metadata_bytes


def no_embedder() -> inputs.Embed:
    raise AssertionError("nothing here needs an embedding")


def read_all(path: Path, embed=no_embedder, prefix: str = "", batch: int = 2) -> list[Record]:
    batches = list(read_records(path, embed, prefix, batch))
    assert all(0 < len(part) <= batch for part in batches)
    return [record for part in batches for record in part]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_jsonl_vectors_with_metadata_in_batches(tmp_path: Path) -> None:
    rows = [{"id": f"d{n}", "vector": [n, 0.5], "metadata": {"n": n}} for n in range(5)]
    path = write_lines(tmp_path / "a.jsonl", *rows, "")
    records = read_all(path)
    assert [record.id for record in records] == ["d0", "d1", "d2", "d3", "d4"]
    assert records[3].vector.dtype == np.float32 and records[3].vector.tolist() == [3.0, 0.5]
    assert records[3].metadata == {"n": 3}
    assert count_records(path) == 5


def test_jsonl_texts_are_embedded_in_order_and_other_keys_become_metadata(tmp_path: Path) -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    path = write_lines(
        tmp_path / "a.jsonl",
        {"id": "a", "text": "one", "lang": "en"},
        {"id": "b", "vector": [7, 7], "metadata": None},
        {"id": "c", "text": "three", "metadata": {"x": 1}},
    )
    records = read_all(path, lambda: embed, batch=10)
    assert seen == ["one", "three"]
    assert [record.vector[0] for record in records] == [3, 7, 5]
    assert [record.metadata for record in records] == [
        {"text": "one", "lang": "en"},
        None,
        {"x": 1, "text": "three"},
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[]", r'^\S+: \[\] is not allowed: .* string "id"'),
        ('{"vector": [1]}', 'there is no "id"'),
        ('{"id": 7, "vector": [1]}', '"id" = 7 is not allowed: .* string "id"'),
        ('{"id": "a"}', '"vector"'),
        ('{"id": "a", "vector": "no"}', "array of shape"),
        ('{"id": "a", "vector": ["1"]}', "real numbers"),
        ('{"id": "a", "vector": [null]}', "real numbers"),
        ('{"id": "a", "vector": [NaN]}', "finite"),
        ('{"id": "a", "vector": [1e39]}', "finite"),
        ('{"id": "a", "vector": [[1, 2], [3, 4]]}', "array of shape"),
        ('{"id": "a", "vector": []}', "at least one number"),
        ('{"id": "a", "vector": [1], "metadata": [1], "x": 2}', "must be an object"),
        ('{"id": "a", "vector": [1], "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON"),
    ],
)
def test_jsonl_names_the_line_it_refuses(tmp_path: Path, line: str, problem: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": "good", "vector": [1]}, "", line)
    with pytest.raises(InvalidArgument, match=problem) as caught:
        read_all(path)
    assert f"{path}:3" in caught.value.message


def test_jsonl_that_is_not_utf_8_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "good", "vector": [1]}\n' + '{"id": "é", "vector": [1]}'.encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"a\.jsonl:2: not JSON.*utf-8"):
        read_all(path)


def test_npy_names_the_row_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, np.array([[1, 2], [3, 4], [5, np.inf]]))
    with pytest.raises(InvalidArgument, match=r"v\.npy row 2: vector\[1\] = inf"):
        read_all(path, batch=10)


def test_npy_rows_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, np.arange(6, dtype=np.float64).reshape(3, 2))
    records = read_all(path, prefix="doc-")
    assert [record.id for record in records] == ["doc-0", "doc-1", "doc-2"]
    assert records[2].vector.dtype == np.float32 and records[2].vector.tolist() == [4, 5]
    assert count_records(path) == 3


def test_npy_of_another_shape_or_not_npy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, np.zeros(4))
    with pytest.raises(InvalidArgument, match="2-d"):
        read_all(path)
    path.write_bytes(b"hello")
    with pytest.raises(InvalidArgument, match=r"not a \.npy"):
        read_all(path)


def test_parquet_columns_become_metadata(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    table = {"id": ["a", "b", "c"], "vector": [[1.0, 2.0]] * 3, "lang": ["en", "de", None]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    records = read_all(path)
    assert [record.id for record in records] == ["a", "b", "c"]
    assert records[1].metadata == {"lang": "de"} and records[1].vector.tolist() == [1, 2]
    assert count_records(path) == 3


def test_lines_say_when_a_document_expires_beside_its_metadata(tmp_path: Path) -> None:
    path, at = tmp_path / "a.jsonl", "2030-01-01T00:00:00Z"
    own = {"id": "a", "vector": [1], "metadata": None, "expires_at": at}
    field = {"id": "b", "vector": [1], "expires_at": at}
    rows = [own, field, {**own, "expires_at": "never"}, {**own, "metadata": {"n": 1}}]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = [(one.metadata, one.expires_at) for one in read_all(path)]
    assert found == [(None, at), ({"expires_at": at}, None), (None, "never"), ({"n": 1}, at)]
    path.write_text(json.dumps({**own, "expires_at": "soon"}))
    with pytest.raises(InvalidArgument, match=r"a\.jsonl:1: expires_at"):
        read_all(path)


def test_a_row_without_an_id_is_not_called_none(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", None], "vector": [[1.0]] * 2}), path)
    records = read_all(path)
    with pytest.raises(InvalidArgument, match="row 1: id"):
        check_record(records[1], None)


def test_parquet_times_without_a_zone_become_text(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    noon = datetime.datetime(2024, 1, 1, 12)
    columns = {
        "day": [noon.date()],
        "local": [noon],
        "at": [noon.replace(tzinfo=datetime.UTC)],
    }
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "vector": [[1.0]], **columns}), path)
    (record,) = read_all(path)
    assert (record.metadata["day"], record.metadata["local"]) == ("2024-01-01", "2024-01-01T12:00:00")
    assert metadata_bytes(record.metadata) == (
        b'{"day":"2024-01-01","local":"2024-01-01T12:00:00","at":"2024-01-01T12:00:00+00:00"}'
    )


def test_parquet_without_vectors_or_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), path)
    with pytest.raises(InvalidArgument, match="no column 'vector', only id"):
        read_all(path)
    path.write_bytes(b"hello")
    for read in (read_all, count_records):
        with pytest.raises(InvalidArgument, match="not a Parquet"):
            read(path)


def test_a_damaged_part_of_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    ids = [str(n) for n in range(5000)]
    table = pyarrow.table({"id": ids, "vector": [[float(n)] for n in range(5000)]})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(byte ^ 255 for byte in data[200:260])
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match=r"v\.parquet: cannot be read"):
        read_all(path)


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"\.jsonl, \.ndjson, \.npy, \.parquet or \.arrow"):
        read_all(tmp_path / "a.csv")


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_query_vector_from_file_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q.npy"
    np.save(path, np.array([[1.0, 2.0]]))
    assert read_query_vector(str(path)).tolist() == [1, 2]
    feed(monkeypatch, path.read_bytes())
    assert read_query_vector("-").tolist() == [1, 2]
    feed(monkeypatch, b"[3, 4]\n")
    assert read_query_vector("-").tolist() == [3, 4]
    reading, writing = os.pipe()
    os.write(writing, path.read_bytes())
    os.close(writing)
    assert read_query_vector(f"/dev/fd/{reading}").tolist() == [1, 2]  # as a shell's <(command) is
    os.close(reading)
    feed(monkeypatch, b"three")
    with pytest.raises(InvalidArgument, match="standard input"):
        read_query_vector("-")
    with pytest.raises(InvalidArgument, match="no such file"):
        read_query_vector(str(tmp_path / "none.npy"))


EXPORTED = '{"id": "a", "version": 7, "metadata": {"n": 1}, "vector": [1, 2]}\n{"id": "b", "version": 8, "metadata": null, "vector": [3, 4]}\n'  # noqa: E501


def test_an_export_by_http_is_read_if_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "documents.ndjson"
    path.write_text(EXPORTED + '{"end": "complete", "documents": 2}\n')
    assert [(one.id, one.metadata) for one in read_all(path)] == [("a", {"n": 1}), ("b", None)]
    assert count_records(path) == 2
    for last in ("", '{"end": "broken_off", "problem": {"detail": "no leader"}}\n', '{"end": "comp'):
        path.write_text(EXPORTED + last)
        for read in (read_all, count_records):
            with pytest.raises(InvalidArgument, match="broke off") as refused:
                read(path)
            assert str(path) in refused.value.message and ("no leader" in refused.value.message) == ("no" in last)
    for said in ("1", "3", "-1", "null", '"2"', "true", "2.0"):
        path.write_text(EXPORTED + f'{{"end": "complete", "documents": {said}}}\n')
        for read in (read_all, count_records):
            with pytest.raises(InvalidArgument, match=r"last line says that the export has .* and 2 lines are"):
                read(path)
    path.write_text(2 * (EXPORTED + '{"end": "complete", "documents": 2}\n'))  # two in one: half of it was left out
    with pytest.raises(InvalidArgument, match="Of several exports in one file"):
        read_all(path)
    path.write_text(EXPORTED + '{"end": 5, "problem": "no leader"}\n')
    with pytest.raises(InvalidArgument, match="broke off: it does not say why"):
        read_all(path)
    path.write_text('{"id": "a", "vector": [1, 2], "version": 7}\n')  # of one's own
    assert [one.metadata for one in read_all(path)] == [{"version": 7}]


def test_named_vectors_in_lines_and_columns(tmp_path: Path) -> None:
    lines = write_lines(
        tmp_path / "a.jsonl",
        {"id": "a", "vector": [1], "vectors": {"title": [1, 2], "image": None}, "metadata": {"vectors": 7}},
        "",
        '{"id": "b", "vector": [2], "vectors": null}',
    )
    rows = pyarrow.table({
        "id": ["a", "b"], "vector": [[1.0], [2.0]], "vector:title": [[1.0, 2.0], None], "vectors": [7, None],
    })  # fmt: skip
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    for path in (lines, tmp_path / "a.parquet"):
        found = read_all(path)
        assert [{name: one.tolist() for name, one in row.named.items()} for row in found] == [{"title": [1, 2]}, {}]
        assert found[0].metadata == {"vectors": 7}
    bad = pyarrow.table({"id": ["a"], "vector": [[1.0]], "vector:title": [[1.0, None]]})
    pyarrow.parquet.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(InvalidArgument, match=r"bad.parquet row 0: vector 'title'"):
        read_all(tmp_path / "bad.parquet")
    export = tmp_path / "export.ndjson"
    first = '{"id": "a", "version": 7, "metadata": {"n": 1}, "vector": [1, 2], "vectors": {"title": [3]}}\n'
    export.write_text(first + '{"end": "complete", "documents": 1}\n')
    (row,) = read_all(export)
    assert (row.metadata, row.named["title"].tolist()) == ({"n": 1}, [3])
    export.write_text(first)
    with pytest.raises(InvalidArgument, match="broke off"):
        read_all(export)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_in_both_forms_and_damaged(tmp_path: Path, form: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    path, table = tmp_path / "a.arrow", arrow.table({"id": ["a", "b", "c"], "vector": [[1.0, n] for n in range(3)]})
    with getattr(arrow.ipc, f"new_{form}")(path, table.schema) as file:
        file.write(table)
    batches = list(read_records(path, lambda: pytest.fail("no texts"), "", 2))
    assert [[one.id for one in records] for records in batches] == [["a", "b"], ["c"]]
    assert batches[1][0].vector.tolist() == [1.0, 2.0] and count_records(path) is None
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidArgument, match="not an Arrow file"):
        list(read_records(path, lambda: pytest.fail("no texts"), "", 2))
