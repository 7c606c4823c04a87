"""PostgreSQL with pgvector as a source: a table or view with a column of vectors.

All is read in one transaction that sees one state and cannot write, so what others write meanwhile makes no difference
between copy and comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from needle.base.errors import InvalidArgument
from needle.base.model import Metric
from needle.cli.imports.source import KEY_VARIABLE, Asked, Shape, in_words, library, metric_of, one_of
from needle.cli.inputs import Record, as_vector, refuse

CONNECT_SECONDS: Final = 30
DENSE: Final = ("vector", "halfvec")
OTHERS: Final = ("sparsevec", "bit")

_COLUMNS: Final = """
SELECT n.nspname, c.relname, a.attname, t.typname, a.atttypmod, n.nspname = ANY (current_schemas(false))
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped
AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY n.nspname, c.relname, a.attnum"""
_KEYS: Final = """
SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indisprimary AND i.indrelid = %s::regclass"""
_INDEXES: Final = """
SELECT DISTINCT o.opcname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
JOIN pg_opclass o ON o.oid = i.indclass[0] WHERE i.indrelid = %s::regclass AND a.attname = %s AND i.indnkeyatts = 1"""


class _Column(NamedTuple):
    name: str
    kind: str
    size: int
    """Of a vector, -1 where the column names none."""


class PgVector:
    """A table, or a view, of a database that libpq's URL names. The metric is that of the index on the vectors."""

    METRICS: Final = {"l2": Metric.L2, "cosine": Metric.COSINE, "ip": Metric.DOT}
    NEAR: Final = {Metric.L2: "<->", Metric.COSINE: "<=>", Metric.DOT: "<#>"}
    exact = True

    def __init__(self, asked: Asked) -> None:
        self._place, self._rows = asked.place, asked.rows
        if not asked.place.startswith(("postgresql://", "postgres://")):
            raise refuse("pgvector:", "a URL such as pgvector:postgresql://user@host:5432/database comes after it")
        psycopg = library("psycopg", "import-pgvector")
        try:
            parts = library("psycopg.conninfo", "import-pgvector").conninfo_to_dict(asked.place)
        except psycopg.ProgrammingError:
            # What libpq says repeats parts of the URL, and a password may be among them.
            raise refuse("pgvector:", "what comes after it is no URL that PostgreSQL's libpq can read") from None
        if parts.get("password") or parts.get("sslpassword"):
            # Command lines are seen by everybody on the machine, and this one would be shown.
            raise InvalidArgument(
                f"the password of a database goes into {KEY_VARIABLE}, that of a key into no command line: leave it "
                "out of the URL",
                field="SOURCE",
            )
        self._sql = library("psycopg.sql", "import-pgvector")
        self._errors = (psycopg.Error, OSError)
        with in_words(asked.place, *self._errors):
            options = {"password": asked.key} if asked.key else {}
            self._connection = psycopg.connect(asked.place, connect_timeout=CONNECT_SECONDS, **options)
        try:
            self._connection.read_only = True
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._look(asked)
        except BaseException:
            self.close()
            raise

    def _ask(self, query: Any, *values: object) -> list[tuple[Any, ...]]:
        with in_words(self._place, *self._errors):
            found: list[tuple[Any, ...]] = self._connection.execute(query, values).fetchall()
        return found

    def _look(self, asked: Asked) -> None:
        tables: dict[str, tuple[str, str, list[_Column]]] = {}
        for schema, table, name, kind, size, short in self._ask(_COLUMNS):
            key = table if short else f"{schema}.{table}"
            tables.setdefault(key, (schema, table, []))[2].append(_Column(name, kind, size))
        usable = [key for key, held in tables.items() if any(one.kind in DENSE for one in held[2])]
        if not usable:
            raise refuse(self._place, f"no table of it has a column of the types {', '.join(DENSE)}")
        schema, table, columns = tables[one_of(self._place, "--from-collection", asked.collection, usable)]
        self._table = self._sql.Identifier(schema, table)
        self._named = self._table.as_string(self._connection)
        self._choose(asked, columns)
        self.metric, told = self._indexed()
        ((documents,),) = self._ask(self._sql.SQL("SELECT count(*) FROM {}").format(self._table))
        if not documents:
            raise refuse(self._place, f"{self._named} holds no rows")
        left_out = [one.name for one in columns if one.kind in DENSE + OTHERS and one.name != self._vector.name]
        others = [one.name for one in columns if one.name not in (self._id, self._vector.name, *left_out)]
        self._left = [self._id, self._vector.name, *left_out]
        mapped = (
            (f"column {self._id}", "id, numbers as text"),
            (f"column {self._vector.name}", "vector"),
            ("other columns", f"metadata: {', '.join(others) or 'none'}"),
            *((f"column {one}", "left out: --vector names another") for one in left_out),
            *told,
        )
        self.shape = Shape(documents, self._dimensions(), self.metric, mapped)

    def _choose(self, asked: Asked, columns: list[_Column]) -> None:
        dense = {one.name: one for one in columns if one.kind in DENSE}
        self._vector = dense[one_of(self._place, "--vector", asked.vector, list(dense))]
        keys = [name for (name,) in self._ask(_KEYS, self._named)]
        usual = keys[0] if len(keys) == 1 else None
        names = [one.name for one in columns if one.kind not in DENSE + OTHERS]
        self._id = one_of(self._place, "--id", asked.id or usual, names)

    def _indexed(self) -> tuple[Metric | None, list[tuple[str, str]]]:
        """The metric of the vectors' indexes, if they have one; and what is to be said of it."""
        classes = [name for (name,) in self._ask(_INDEXES, self._named, self._vector.name)]
        names = sorted({name.removeprefix(f"{self._vector.kind}_").removesuffix("_ops") for name in classes})
        if len(names) == 1:
            return metric_of(self._place, names[0], self.METRICS), []
        shown = f"indexes for {', '.join(names)}" if names else "no index"
        return None, [(shown, "--metric says which metric; otherwise cosine")]

    def _dimensions(self) -> int:
        if self._vector.size > 0:
            return self._vector.size
        column = self._sql.Identifier(self._vector.name)
        query = self._sql.SQL("SELECT {}::vector::real[] FROM {} WHERE {} IS NOT NULL LIMIT 1")
        found = self._ask(query.format(column, self._table, column))
        if not found:
            raise refuse(self._place, f"no row of {self._named} has a vector")
        return len(found[0][0])

    def batches(self) -> Iterator[list[Record]]:
        sql = self._sql
        query = sql.SQL("SELECT {}::text, {}::vector::real[], to_jsonb(t.*) - {}::text[] FROM {} t").format(
            sql.Identifier(self._id), sql.Identifier(self._vector.name), sql.Literal(self._left), self._table
        )
        with in_words(self._place, *self._errors):
            cursor = self._connection.cursor(f"rows{next(_numbers)}", binary=True)
            cursor.execute(query)
        try:
            while True:
                with in_words(self._place, *self._errors):
                    rows = cursor.fetchmany(self._rows)
                if not rows:
                    return
                yield [self._record(*row) for row in rows]
        finally:
            if not self._connection.closed:
                with in_words(self._place, *self._errors):
                    cursor.close()

    def _record(self, name: str | None, vector: list[float] | None, others: dict[str, Any]) -> Record:
        where = f"{self._place} row {self._id} = {name}"
        if name is None or vector is None:
            missing = self._id if name is None else self._vector.name
            raise refuse(where, f"has no {missing}; a view WHERE {missing} IS NOT NULL leaves such rows out")
        metadata = {key: value for key, value in others.items() if value is not None}
        return Record(name, as_vector(np.array(vector, np.float32), where), metadata or None, where)

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        if self.metric is None:
            return None
        sql, asked = self._sql, "[" + ",".join(map(repr, query.tolist())) + "]"
        order = sql.SQL("SELECT {}::text FROM {} ORDER BY {}::vector {} %s::vector LIMIT %s").format(
            sql.Identifier(self._id), self._table, sql.Identifier(self._vector.name), sql.SQL(self.NEAR[self.metric])
        )
        self._exactly()
        return [name for (name,) in self._ask(order, asked, k)]

    def _exactly(self) -> None:
        """For this transaction: no index is asked, for those of vectors are not exact."""
        with in_words(self._place, *self._errors):
            self._connection.execute("SET LOCAL enable_indexscan = off")

    def close(self) -> None:
        self._connection.close()


_numbers = count()
"""Of cursors: each has a name of its own."""
