"""How texts become words: recorded, for files of indexes and other nodes have the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from needle.base.errors import InvalidArgument
from needle.base.text import LANGUAGES, TextField
from needle.shard.analysis import analyzed, asked_words

ENGLISH, PLAIN = TextField(field="a"), TextField(field="a", language="none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Running of FOXES, quickly!", ["the", "run", "of", "fox", "quick"]),
        ("max_retries", ["max_retries", "max", "retri"]),
        ("getUserId() HTTPServer", ["getuserid", "get", "user", "id", "httpserver", "http", "server"]),
        ("BM25 E-1042 3.14", ["bm25", "bm", "25", "e", "1042", "3", "14"]),
        ("__init__ _x", ["init", "x"]),
        ("Größe ﬁne ＡＢＣ Straße_2", ["größe", "fine", "abc", "straße_2", "straße", "2"]),
        ("", []),
        ("+-*/ \x00 \n", []),
        ("日本語", ["日本語"]),
    ],
)
def test_words_of_texts(text: str, words: list[str]) -> None:
    assert analyzed(text, ENGLISH) == words


def test_what_is_no_text_has_no_words_and_of_a_list_all_texts_count() -> None:
    assert analyzed(["one two", 3, None, ["four"], "five"], PLAIN) == ["one", "two", "five"]
    assert [analyzed(value, PLAIN) for value in (None, 3, True, {"a": "b"})] == [[], [], [], []]


def test_a_query_s_words_are_in_a_fixed_order_with_how_often_it_has_them() -> None:
    assert asked_words("b a b", PLAIN) == [(b"a", 1), (b"b", 2)]
    assert asked_words("runs running", ENGLISH) == [(b"run", 2)]


def test_other_analyzers_are_refused() -> None:
    for text in (TextField(field="a", language="klingon"), TextField(field="a", version=2)):
        with pytest.raises(InvalidArgument, match="version 1 of one of"):
            analyzed("x", text)


SAMPLE = (
    "generously organization nationality dying lying relational conditional running flies happily universities "
    "häuser kinder gelaufen schöne freundlichkeiten continuellement mangeaient nationalités corriendo habitaciones "
    "rápidamente andando velocemente belezas correndo работающий книгами красивая kirjoissa taloissa flickorna "
    "springande spiste husene házakban gyerekek evlerinden kitaplar frumoasele copiilor lopende mogelijkheden"
)

STEMS = {
    "none": "f309152cafc9",
    "danish": "76e8d61566b3",
    "dutch": "379e07011a30",
    "english": "4bf24ac14a8c",
    "finnish": "c940be3c60f4",
    "french": "cc3ce46c5aa3",
    "german": "d2b53d84b073",
    "hungarian": "4f0cbee68544",
    "italian": "2cd99f47c719",
    "norwegian": "0bfa7f4b3e69",
    "portuguese": "20d70c9e2ba2",
    "romanian": "1544441146da",
    "russian": "ef44388c5d3d",
    "spanish": "66470bcede3f",
    "swedish": "6ef303c4e172",
    "turkish": "8df1cd207668",
}


def digest(language: str) -> str:
    words = analyzed(SAMPLE, TextField(field="a", language=language))
    return hashlib.blake2b(" ".join(words).encode(), digest_size=6).hexdigest()


def test_the_stemmers_are_those_of_version_1() -> None:
    """A release of the library that stems otherwise needs another version of the analyzer."""
    assert {language: digest(language) for language in LANGUAGES} == STEMS


def test_the_library_in_c_is_not_taken_where_it_is_installed() -> None:
    """It may be of another version, on some nodes."""
    code = (
        "import sys, types; fake = types.ModuleType('Stemmer'); fake.algorithms = lambda: ['english']\n"
        "fake.Stemmer = None; sys.modules['Stemmer'] = fake\n"
        "from needle.base.text import TextField; from needle.shard.analysis import analyzed\n"
        "assert analyzed('running foxes', TextField(field='a')) == ['run', 'fox']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
