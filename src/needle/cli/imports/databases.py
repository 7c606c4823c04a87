"""Other databases as sources: Chroma, Qdrant, LanceDB, Milvus Lite. Their libraries are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from needle.base.model import Metric
from needle.cli.imports.source import EXPIRES, Asked, Shape, in_words, joined, library, metric_of, one_of
from needle.cli.inputs import Record, as_vector, refuse


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _there(place: str, mark: str | None = None) -> str:
    """A path that exists, with the file `mark` in it: elsewhere these libraries would make an empty database."""
    if not Path(place).exists():
        raise refuse(place, "there is no such file or directory")
    if mark is not None and not (Path(place) / mark).exists():
        raise refuse(place, f"there is no {mark} in it, so it is not the directory of such a database")
    return place


class Chroma:
    """A directory of its PersistentClient, or its server."""

    METRICS: Final = {"l2": Metric.L2, "cosine": Metric.COSINE, "ip": Metric.DOT}
    exact = False  # an HNSW graph

    def __init__(self, asked: Asked) -> None:
        self._place, self._rows = asked.place, asked.rows
        chromadb = library("chromadb", "import-chroma")
        self._errors = (chromadb.errors.ChromaError, ValueError, OSError, chromadb.errors.InternalError)
        with in_words(asked.place, *self._errors):
            client = self._client(chromadb, asked)
            names = [one if isinstance(one, str) else one.name for one in client.list_collections()]
            name = one_of(asked.place, "--from-collection", asked.collection, names)
            self._held = client.get_collection(name, embedding_function=None)
            count = self._held.count()
            first = self._held.get(limit=1, include=["embeddings"])["embeddings"]
            configured: Any = self._held.configuration
        if not count:
            raise refuse(asked.place, f"collection {name} holds no documents")
        index = configured.get("hnsw") or configured.get("spann") or {}
        metric = metric_of(asked.place, str(index.get("space") or "l2"), self.METRICS)
        mapped = (
            ("id", "id"),
            ("embedding", "vector"),
            ("metadata", "metadata"),
            ("document", 'metadata "document"'),
            ("uri", 'metadata "uri"'),
        )
        self.shape = Shape(count, len(first[0]), metric, mapped)

    @staticmethod
    def _client(chromadb: Any, asked: Asked) -> Any:
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        if not _is_url(asked.place):
            return chromadb.PersistentClient(path=_there(asked.place, "chroma.sqlite3"), settings=settings)
        url = urlsplit(asked.place)
        secure = url.scheme == "https"
        return chromadb.HttpClient(
            host=url.hostname,
            port=url.port or (443 if secure else 8000),
            ssl=secure,
            headers={"x-chroma-token": asked.key} if asked.key else None,
            settings=settings,
        )

    def batches(self) -> Iterator[list[Record]]:
        start = 0
        while True:
            with in_words(self._place, *self._errors):
                page = self._held.get(
                    limit=self._rows, offset=start, include=["embeddings", "metadatas", "documents", "uris"]
                )
            ids = page["ids"]
            if not ids:
                return
            yield [self._record(page, at, name) for at, name in enumerate(ids)]
            start += len(ids)

    def _record(self, page: Any, at: int, name: str) -> Record:
        where = f"{self._place} document {name!r}"
        metadata, document, uri = (
            None if page.get(part) is None else page[part][at] for part in ("metadatas", "documents", "uris")
        )
        told = joined(where, None if metadata is None else dict(metadata), document=document, uri=uri)
        return Record(name, as_vector(page["embeddings"][at], where), told, where)

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        with in_words(self._place, *self._errors):
            found: list[str] = self._held.query(query_embeddings=[query], n_results=k, include=[])["ids"][0]
        return found

    def close(self) -> None:
        """It holds no lock, and its clients of one directory share one database."""


class Qdrant:
    """A directory of qdrant-client's local mode, or a server by REST."""

    METRICS: Final = {"cosine": Metric.COSINE, "euclid": Metric.L2, "dot": Metric.DOT}
    exact = True

    def __init__(self, asked: Asked) -> None:
        self._place, self._rows = asked.place, asked.rows
        qdrant = library("qdrant_client", "import-qdrant")
        parameters = library("qdrant_client.models", "import-qdrant").SearchParams
        self._exactly = parameters(exact=True) if _is_url(asked.place) else None  # the local mode is exact, and says so
        broken = library("qdrant_client.http.exceptions", "import-qdrant").ApiException
        self._errors = (broken, ValueError, OSError, RuntimeError)
        with in_words(asked.place, *self._errors):
            if _is_url(asked.place):
                self._client = qdrant.QdrantClient(url=asked.place, api_key=asked.key, timeout=60)
            else:
                self._client = qdrant.QdrantClient(path=_there(asked.place, "meta.json"))
        try:
            self._look(asked)
        except BaseException:
            self.close()
            raise

    def _look(self, asked: Asked) -> None:
        with in_words(asked.place, *self._errors):
            names = [one.name for one in self._client.get_collections().collections]
            self._name = one_of(asked.place, "--from-collection", asked.collection, names)
            held = self._client.get_collection(self._name).config.params
            count = self._client.count(self._name, exact=True).count
        self._vector, parameters, left_out = self._choose(held, asked.vector)
        if getattr(parameters, "multivector_config", None) is not None:
            raise refuse(asked.place, f"vector {self._vector!r} is several vectors a point, which has no counterpart")
        metric = metric_of(asked.place, str(getattr(parameters.distance, "value", parameters.distance)), self.METRICS)
        mapped = (
            ("id", "id, numbers as text"),
            (f"vector {self._vector}" if self._vector else "vector", "vector"),
            ("payload", "metadata"),
            *((f"vector {name}", "left out: --vector names another") for name in left_out),
        )
        self.shape = Shape(count, parameters.size, metric, mapped)

    def _choose(self, held: Any, wanted: str | None) -> tuple[str, Any, list[str]]:
        """The vector's name ("" for the one without), what it is like, and the names of the others."""
        sparse = sorted(held.sparse_vectors or {})
        dense = held.vectors if isinstance(held.vectors, dict) else {"": held.vectors} if held.vectors else {}
        if sparse and (wanted is None or wanted in sparse):
            shown = ", ".join(name or "(without a name)" for name in dense) or "none"
            raise refuse(
                self._place,
                f"has sparse vectors ({', '.join(sparse)}), which are not imported; --vector NAME takes a dense one "
                f"and leaves the others out; there are: {shown}",
            )
        name = one_of(self._place, "--vector", wanted, list(dense))
        return name, dense[name], [*sparse, *(other for other in dense if other != name)]

    def batches(self) -> Iterator[list[Record]]:
        after: Any = None
        while True:
            with in_words(self._place, *self._errors):
                points, after = self._client.scroll(
                    self._name, limit=self._rows, offset=after, with_payload=True, with_vectors=True
                )
            if points:
                yield [self._record(point) for point in points]
            if after is None:
                return

    def _record(self, point: Any) -> Record:
        where = f"{self._place} point {point.id}"
        vector = point.vector.get(self._vector) if isinstance(point.vector, dict) else point.vector
        if vector is None:
            raise refuse(where, f"has no vector {self._vector!r}; every document has one")
        return Record(str(point.id), as_vector(vector, where), point.payload or None, where)

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        with in_words(self._place, *self._errors):
            found = self._client.query_points(
                self._name,
                query=query.tolist(),
                using=self._vector or None,
                limit=k,
                search_params=self._exactly,
                with_payload=False,
            )
        return [str(point.id) for point in found.points]

    def close(self) -> None:
        self._client.close()


class LanceDB:
    """A directory of tables. The metric is that of the table's index; without one the default of LanceDB, L2."""

    METRICS: Final = {"cosine": Metric.COSINE, "l2": Metric.L2, "dot": Metric.DOT}
    exact = True

    def __init__(self, asked: Asked) -> None:
        self._place, self._rows = asked.place, asked.rows
        lancedb = library("lancedb", "import-lancedb")
        arrow = library("pyarrow", "import-lancedb")
        self._errors = (ValueError, OSError, RuntimeError)
        with in_words(asked.place, *self._errors):
            opened = lancedb.connect(_there(asked.place))
            name = one_of(asked.place, "--from-collection", asked.collection, list(opened.table_names(limit=1000)))
            self._table = opened.open_table(name)
            form, count = self._table.schema, self._table.count_rows()
        vectors = [one.name for one in form if arrow.types.is_fixed_size_list(one.type)]
        self._vector = one_of(asked.place, "--vector", asked.vector, vectors)
        left_out = [one for one in vectors if one != self._vector]
        self._id = one_of(asked.place, "--id", asked.id or ("id" if "id" in form.names else None), list(form.names))
        others = [one for one in form.names if one not in (self._id, *vectors)]
        self._check_others(others)
        self._columns = [self._id, self._vector, *others]
        self._metric = self._indexed() or "l2"
        mapped = (
            (f"column {self._id}", "id, numbers as text"),
            (f"column {self._vector}", "vector"),
            ("other columns", f"metadata: {', '.join(others) or 'none'}"),
            *((f"column {one}", "left out: --vector names another") for one in left_out),
        )
        metric = metric_of(asked.place, self._metric, self.METRICS)
        self.shape = Shape(count, form.field(self._vector).type.list_size, metric, mapped)

    def _check_others(self, others: list[str]) -> None:
        """Raises InvalidArgument for a name that stands for something else than metadata in tables: what is in such a
        column would not arrive."""
        tables = library("needle.client.arrow_tables", "import-lancedb")
        taken = next((one for one in others if one in (tables.ID, tables.VECTOR) or one.startswith(tables.NAMED)), None)
        if taken is not None:
            raise refuse(
                self._place,
                f"its column {taken!r} cannot become metadata, for so are ids and vectors called in tables: give it "
                "another name (alter_columns), or take it out (drop_columns)",
            )

    def _indexed(self) -> str | None:
        """The metric of the vectors' index."""
        with in_words(self._place, *self._errors):
            for index in self._table.list_indices():
                if self._vector in index.columns:
                    told = self._table.index_stats(index.name)
                    return None if told is None or told.distance_type is None else str(told.distance_type)
        return None

    def batches(self) -> Iterator[list[Record]]:
        tables = library("needle.client.arrow_tables", "import-lancedb")
        form, row = None, 0
        for batch in self._read():
            batch = batch.select(self._columns).rename_columns([tables.ID, tables.VECTOR, *self._columns[2:]])
            form = form or tables.Form(batch.schema, self._place)
            records = []
            for one in form.rows(batch):
                where = f"{self._place} row {row}"
                if not isinstance(one.id, str):
                    raise refuse(where, f"its id {one.id!r} is neither a text nor a number")
                if one.expires_at is not None:
                    raise refuse(where, EXPIRES)
                records.append(Record(one.id, as_vector(one.vector, where), one.metadata, where))
                row += 1
            if records:
                yield records

    def _read(self) -> Iterator[Any]:
        """The table's rows as Arrow has them."""
        with in_words(self._place, *self._errors):
            asked = self._table.search().select(self._columns).limit(max(1, self.shape.documents or 1))
            reader = iter(asked.to_batches(self._rows))
        while True:
            with in_words(self._place, *self._errors):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        asked = self._table.search(query, vector_column_name=self._vector).distance_type(self._metric)
        with in_words(self._place, *self._errors):
            chosen = asked.bypass_vector_index().select([self._id, "_distance"])  # without it each search warns
            found = chosen.limit(k).to_list()
        return [str(one[self._id]) for one in found]

    def close(self) -> None:
        """Tables are open only while they are read."""


class Milvus:
    """What Milvus Lite keeps, since its version 3 a directory."""

    METRICS: Final = {"cosine": Metric.COSINE, "l2": Metric.L2, "ip": Metric.DOT}
    exact = False

    def __init__(self, asked: Asked) -> None:
        self._place, self._rows = asked.place, asked.rows
        pymilvus = library("pymilvus", "import-milvus")
        library("milvus_lite", "import-milvus")
        self._errors = (pymilvus.MilvusException, ValueError, OSError)
        with in_words(asked.place, *self._errors):
            self._client = pymilvus.MilvusClient(_there(asked.place, "collections"))
            names = list(self._client.list_collections())
            self._name = one_of(asked.place, "--from-collection", asked.collection, names)
            self._client.load_collection(self._name)
            fields = self._client.describe_collection(self._name)["fields"]
            counted = self._client.query(self._name, filter="", output_fields=["count(*)"])
        typed = {one["name"]: pymilvus.DataType(one["type"]).name for one in fields}
        vectors = [one for one, kind in typed.items() if kind.endswith("VECTOR")]
        self._choose(asked, typed, vectors)
        self._id = next(one["name"] for one in fields if one.get("is_primary"))
        left_out = [one for one in vectors if one != self._vector]
        self._left = {self._id, *vectors}
        dimensions = next(int(one["params"]["dim"]) for one in fields if one["name"] == self._vector)
        mapped = (
            (f"field {self._id}", "id, numbers as text"),
            (f"field {self._vector}", "vector"),
            ("other fields", "metadata"),
            *((f"field {one}", "left out: --vector names another") for one in left_out),
        )
        self.shape = Shape(counted[0]["count(*)"], dimensions, self._metric_of(), mapped)

    def _choose(self, asked: Asked, typed: dict[str, str], vectors: list[str]) -> None:
        kinds = {one: typed[one] for one in vectors}
        other = [one for one, kind in kinds.items() if kind != "FLOAT_VECTOR"]
        if other and (asked.vector is None or asked.vector in other):
            shown = ", ".join(f"{one} ({kinds[one]})" for one in other)
            raise refuse(
                self._place, f"has vectors without a counterpart: {shown}; --vector NAME takes one of float32 instead"
            )
        self._vector = one_of(self._place, "--vector", asked.vector, [one for one in vectors if one not in other])

    def _metric_of(self) -> Metric:
        with in_words(self._place, *self._errors):
            for name in self._client.list_indexes(self._name):
                told = self._client.describe_index(self._name, name)
                if told.get("field_name", name) == self._vector:
                    return metric_of(self._place, str(told["metric_type"]), self.METRICS)
        raise refuse(self._place, f"its vectors {self._vector} have no index, which would name the metric")

    def batches(self) -> Iterator[list[Record]]:
        with in_words(self._place, *self._errors):
            pages = self._client.query_iterator(self._name, batch_size=self._rows, filter="", output_fields=["*"])
        try:
            while True:
                with in_words(self._place, *self._errors):
                    rows = pages.next()
                if not rows:
                    return
                yield [self._record(dict(row)) for row in rows]
        finally:
            pages.close()

    def _record(self, row: dict[str, Any]) -> Record:
        where = f"{self._place} document {row[self._id]!r}"
        metadata = {name: value for name, value in row.items() if name not in self._left}
        return Record(str(row[self._id]), as_vector(row[self._vector], where), metadata or None, where)

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        with in_words(self._place, *self._errors):
            found = self._client.search(self._name, data=[query.tolist()], limit=k, anns_field=self._vector)[0]
        return [str(one.get("id", one.get(self._id))) for one in found]

    def close(self) -> None:
        self._client.close()
