"""The source of a bulk load in a bucket, of a small S3 server on loopback, and the same files on the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from needle.base.errors import InvalidArgument, StorageError
from needle.cli.bulk.pieces import Piece, batches_of, pieces_of

WHEN = "2026-11-30T02:00:00.000Z"
ROWS = 2500


class Bucket(ThreadingHTTPServer):
    """objects: by bucket/key. ranges: of the requests for parts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.ranges: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """As much of S3 as reading takes."""

    server: Bucket
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if "list-type" in asked.query:
            self._listed(asked.path.strip("/"), parse_qs(asked.query).get("prefix", [""])[0])
        else:
            self._answer(body=True)

    def _listed(self, bucket: str, prefix: str) -> None:
        found = {
            name.removeprefix(f"{bucket}/"): data
            for name, data in self.server.objects.items()
            if name.startswith(f"{bucket}/{prefix}")
        }
        one = (
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>&quot;1&quot;</ETag><Size>{}</Size></Contents>"
        )
        inside = "".join(one.format(escape(name), WHEN, len(data)) for name, data in found.items())
        self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{inside}</ListBucketResult>".encode())

    def _answer(self, *, body: bool) -> None:
        data = self.server.objects.get(urlsplit(self.path).path.strip("/"))
        if data is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>" if body else b"")
            return
        span = self.headers.get("Range")
        if span is None:
            self._send(200, data, body=body)
            return
        self.server.ranges.append(span)
        first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
        self._send(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _send(self, status: int, data: bytes, more: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        said = {"Content-Length": str(len(data)), "Last-Modified": "Mon, 30 Nov 2026 02:00:00 GMT", "ETag": '"1"'}
        for name, value in {**said, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    said = {
        "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "ALLOW_HTTP": "true",
        "ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def parquet(path: Path, first: int) -> bytes:
    ids = [f"d{at}" for at in range(first, first + ROWS)]
    vectors = [[float(at), 1.0] for at in range(first, first + ROWS)]
    pq.write_table(pa.table({"id": ids, "vector": vectors}), path, row_group_size=1000)
    return path.read_bytes()


def ids_of(source: str) -> list[str]:
    pieces, width = pieces_of(source)
    assert width == 2
    return [name for piece in pieces for _, batch in batches_of(piece) for name in batch.column("id").to_pylist()]


def test_a_prefix_of_a_bucket_is_read_as_a_directory_is(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a.parquet", "b.parquet")):
        bucket.objects[f"books/some/in/{name}"] = parquet(tmp_path / "in" / name, number * ROWS)
    bucket.objects["books/some/in/notes.txt"] = b"no Parquet"
    bucket.objects["books/some/other.parquet"] = b"not below the prefix"
    expected = [f"d{at}" for at in range(2 * ROWS)]
    assert ids_of(str(tmp_path)) == expected
    assert ids_of("s3://books/some/in") == expected
    assert ids_of("s3://books/some/in/") == expected
    assert ids_of("s3://books/some/in/b.parquet") == expected[ROWS:]
    pieces, _ = pieces_of("s3://books/some/in")
    assert [(one.path, one.group, one.rows) for one in pieces[:4]] == [
        ("s3://books/some/in/a.parquet", 0, 1000),
        ("s3://books/some/in/a.parquet", 1, 1000),
        ("s3://books/some/in/a.parquet", 2, 500),
        ("s3://books/some/in/b.parquet", 0, 1000),
    ]
    assert len({(one.size, one.changed) for one in pieces[:3]}) == 1
    bucket.ranges.clear()
    assert sum(batch.num_rows for _, batch in batches_of(pieces[0])) == 1000
    assert len(bucket.ranges) < 10, "a row group costs some requests, and no more"


def test_what_is_not_there_or_no_parquet_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects["books/x.parquet"] = b"PAR1 and nothing else"
    for source in ("s3://books/none", "s3://books/none.parquet", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(InvalidArgument, match="no Parquet file"):
            pieces_of(source)
    with pytest.raises(InvalidArgument, match="not a Parquet file"):
        pieces_of("s3://books/x.parquet")
    pieces, _ = pieces_of_one(bucket, tmp_path)
    del bucket.objects["books/y.parquet"]
    with pytest.raises(InvalidArgument, match="not there any more"):
        next(batches_of(pieces[0]))


def pieces_of_one(bucket: Bucket, tmp_path: Path) -> tuple[list[Piece], int]:
    bucket.objects["books/y.parquet"] = parquet(tmp_path / "y", 0)
    return pieces_of("s3://books/y.parquet")


def test_a_bucket_that_refuses_is_a_storage_error(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Handler, "_listed", lambda self, *_: self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
    )
    with pytest.raises(StorageError, match="s3://books/some"):
        pieces_of("s3://books/some")
