"""How a text becomes the words that it is found by. Pure: the same words in every process of one release.

Version 1: the text in Unicode's form NFKC; its runs of letters, digits and underscores, in lower case; without the
endings of the language. A name of code that has parts (`max_retries`, `getUserId`, `BM25`) is one word as it is
written, so that it is found exactly, and so is each of its parts. No word is left out for being frequent: its weight
is small. Of a list of texts all count.

The stemmers are those of Snowball (Porter 2001), in Python: the package takes a library in C for them where there is
one, of another version perhaps, so they are asked for by name. A test compares words with recorded ones: files of
indexes and other nodes have the same, so other rules need another version.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Final

from needle.base.errors import invalid
from needle.base.text import ANALYZER_VERSION, LANGUAGES, NO_LANGUAGE, TextField

_TOKEN: Final = re.compile(r"\w+")
_PARTS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_LONG: Final = 64
"""Longer words have no endings to take off."""
_MARKS_MAX: Final = 30
"""On one letter, as in Unicode's stream-safe form (UAX 15, section 13); more are left out. To normalise sorts them, in
a time that grows with the square of their number, and no other thread runs meanwhile."""
_FOREIGN: Final = re.compile(rf"[^\x00-\x7f]{{{_MARKS_MAX + 1},}}")
STEMS_MAX: Final = 1 << 16
"""Words of which the stem is remembered: some 15 MB at most."""


def analyzed(value: Any, text: TextField) -> list[str]:
    """The words of a field's value, in their order, as often as they are there; none of what is no text. Raises
    InvalidArgument for an analyzer that this release does not have."""
    if text.language not in LANGUAGES or text.version != ANALYZER_VERSION:
        allowed = f"version {ANALYZER_VERSION} of one of {', '.join(LANGUAGES)}"
        raise invalid("text", f"{text.language}, version {text.version}", allowed)
    texts = [one for one in value if isinstance(one, str)] if isinstance(value, list) else [value]
    return [word for one in texts if isinstance(one, str) for word in _words(one, text.language)]


def asked_words(keywords: str, text: TextField) -> list[tuple[bytes, int]]:
    """The different words of a query in a fixed order, and how often it has each."""
    return sorted((word.encode(), count) for word, count in Counter(analyzed(keywords, text)).items())


def _without_heaps(found: re.Match[str]) -> str:
    kept, marks = [], 0
    for letter in found.group():
        marks = marks + 1 if unicodedata.combining(letter) else 0
        if marks <= _MARKS_MAX:
            kept.append(letter)
    return "".join(kept)


def _words(text: str, language: str) -> Iterable[str]:
    text = text if text.isascii() else unicodedata.normalize("NFKC", _FOREIGN.sub(_without_heaps, text))
    for token in _TOKEN.findall(text):
        if token.isalpha() and (token.islower() or token[1:].islower() or token.isupper()):
            yield _stem(token.lower(), language)
            continue
        parts = _PARTS.findall(token) if token.isascii() else [part for part in token.split("_") if part]
        if len(parts) == 1:
            yield _stem(parts[0].lower(), language)
            continue
        yield token.lower()
        for part in parts:
            yield _stem(part.lower(), language)


def _stem(word: str, language: str) -> str:
    # Long words must not be remembered: a query has 4 KB, and there may be as many as are remembered.
    return word if language == NO_LANGUAGE or len(word) > _LONG or not word.isalpha() else _stemmed(word, language)


@lru_cache(maxsize=STEMS_MAX)
def _stemmed(word: str, language: str) -> str:
    stemmed: str = _stemmer(language)().stemWord(word)  # one has a state of its own, so no two threads share one
    return stemmed or word


@cache
def _stemmer(language: str) -> Any:
    module = importlib.import_module(f"snowballstemmer.{language}_stemmer")
    return getattr(module, f"{language.capitalize()}Stemmer")
