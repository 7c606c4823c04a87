"""Known answers found by meaning, by words and by both, in the corpus that the demo ships; beside bm25s alone.

The documents are the docstrings of Python's standard library. Asked are names of functions, codes and names that stand
in one docstring only (RFC 2732, SEEK_SET), and questions in words that their docstrings mostly do not have. Three node
processes; bm25s has its index in this process, its own words and stop words, and the same stemmer. Counted is where
the first right answer is among ten hits: recall@10 is the share of queries that have one, MRR the mean of 1 / its rank.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from bench.cluster import TIMING, NeedleCluster
from bench.report import Report
from needle.base.errors import ClusterTooOld
from needle.base.text import K1, B
from needle.cli.demo import corpus
from needle.cli.demo.corpus import Passage, read_corpus, spread, stdlib_directory
from needle.client import Client
from needle.client.embedding import WORDLLAMA
from needle.local.process_cluster import START_SECONDS, wait_for

NAME = "docstrings"
HITS = 10
BATCH = 250
QUERIES, QUICK_QUERIES = 300, 60
QUESTIONS: dict[str, tuple[str, ...]] = {
    "split a command line like a shell does": ("shlex.split",),
    "run a program and get what it prints": (
        "subprocess.check_output", "subprocess.getoutput", "subprocess.getstatusoutput", "subprocess.run"
    ),
    "copy a whole folder with everything in it": ("shutil.copytree",),
    "delete a folder and all that it contains": ("shutil.rmtree",),
    "guess the kind of a file by its ending": ("mimetypes.guess_type", "mimetypes.MimeTypes.guess_type"),
    "break long lines of a paragraph to a given width": (
        "textwrap.wrap", "textwrap.fill", "textwrap.TextWrapper", "textwrap.TextWrapper.wrap",
        "textwrap.TextWrapper.fill",
    ),
    "middle value of some numbers": ("statistics.median", "statistics.median_low", "statistics.median_high"),
    "pick one element of a list by chance": ("random.Random.choice", "secrets.choice"),
    "how much room is left on a disk": ("shutil.disk_usage",),
    "mix the order of a list": ("random.Random.shuffle",),
    "remember the results of earlier calls of a function": ("functools.lru_cache", "functools.cache"),
    "find where a program is installed": ("shutil.which",),
    "send an email": ("smtplib", "smtplib.SMTP", "smtplib.SMTP.sendmail", "smtplib.SMTP.send_message"),
    "does February have 29 days": ("calendar.isleap", "calendar.leapdays"),
    "remove the blanks that all lines begin with": ("textwrap.dedent",),
    "a secret that can stand in a link": ("secrets.token_urlsafe",),
    "make text safe to be shown in a web page": ("html.escape",),
    "which word was meant by a misspelled one": ("difflib.get_close_matches",),
    "put an item into a list that stays sorted": ("bisect.insort_right", "bisect.insort_left"),
    "the lowest values of a list": ("heapq.nsmallest",),
    "show nested data so that people can read it": ("pprint.pprint", "pprint.pp", "pprint", "pprint.pformat"),
    "where a user's own files are": ("posixpath.expanduser", "pathlib.Path.home", "pathlib.PosixPath.home"),
    "a file that vanishes when it is closed": ("tempfile.NamedTemporaryFile", "tempfile.TemporaryFile"),
    "turn the date of an email into numbers": (
        "email._parseaddr.parsedate", "email._parseaddr.parsedate_tz", "email.utils.parsedate_to_datetime"
    ),
    "show a page in the browser": ("webbrowser.open", "webbrowser.open_new", "webbrowser.open_new_tab"),
    "ask for a password without showing it": ("getpass", "getpass.getpass", "getpass.unix_getpass"),
    "begin a new log file when the old one is large": ("logging.handlers.RotatingFileHandler",),
    "tell whether two floating point numbers are nearly equal": ("unittest.case.TestCase.assertAlmostEqual",),
    "stop a block of code after some seconds": ("asyncio.timeouts.timeout", "asyncio.tasks.wait_for"),
    "the host name that belongs to an address": ("socket.getfqdn",),
}  # fmt: skip

Ask = Callable[[str], Awaitable[Sequence[str]]]
"""The ids of the first HITS hits of a query."""


class Query(NamedTuple):
    """right: ids of documents that answer it."""

    words: str
    right: frozenset[str]


class Found(NamedTuple):
    """How well queries were answered. milliseconds: of one query, the median."""

    recall: float
    rank: float
    milliseconds: float

    def __str__(self) -> str:
        return f"MRR {self.rank:.2f}, recall@{HITS} {self.recall:.2f}; {self.milliseconds:.1f} ms"


def body_of(passage: Passage) -> str:
    """What is searched by words: the name as it is written, and the text."""
    return f"{passage.id.partition('#')[0]}: {passage.text}"


def names(passages: Sequence[Passage], most: int) -> list[Query]:
    """Names of code of which there is one only, with at least two parts, as they are written."""
    ids: dict[str, set[str]] = {}
    for one in passages:
        ids.setdefault(one.name, set()).add(one.id.partition("#")[0])
    chosen = [(name, found) for name, found in ids.items() if len(found) == 1 and re.search(r"\w_\w|[a-z][A-Z]", name)]
    of = {
        name: {one.id for one in passages if one.id.partition("#")[0] in found} for name, found in spread(chosen, most)
    }
    return [Query(name, frozenset(right)) for name, right in of.items()]


def codes(passages: Sequence[Passage], most: int) -> list[Query]:
    """What has digits or underscores and stands in one text only."""
    return [Query(code, frozenset({right})) for code, right in corpus.codes(passages, most)]


def questions(passages: Sequence[Passage]) -> list[Query]:
    """Those that have an answer in this interpreter's library."""
    asked = []
    for words, answers in QUESTIONS.items():
        if right := frozenset(one.id for one in passages if one.id.partition("#")[0] in answers):
            asked.append(Query(words, right))
    return asked


async def answered(queries: Iterable[Query], ask: Ask) -> Found:
    """One query after the other."""
    ranks, seconds = list[int | None](), list[float]()
    for query in queries:
        began = time.perf_counter()
        ids = await ask(query.words)
        seconds.append(time.perf_counter() - began)
        ranks.append(next((rank for rank, one in enumerate(ids, start=1) if one in query.right), None))
    right = [rank for rank in ranks if rank is not None]
    return Found(
        len(right) / len(ranks), sum(1 / rank for rank in right) / len(ranks), 1000 * sorted(seconds)[len(seconds) // 2]
    )


def alone(passages: Sequence[Passage]) -> Ask | None:
    """bm25s, with an index of all passages; None where it is not installed."""
    if importlib.util.find_spec("bm25s") is None:
        return None
    import bm25s  # of the extra "bench"
    import snowballstemmer

    def tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stem, show_progress=False)

    stem = snowballstemmer.stemmer("english").stemWords
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(tokens([body_of(one) for one in passages]), show_progress=False)
    ids = [one.id for one in passages]

    async def ask(words: str) -> list[str]:
        rows, scores = index.retrieve(tokens([words]), k=HITS, show_progress=False)
        return [ids[row] for row, score in zip(rows[0], scores[0], strict=True) if score > 0]

    return ask


async def fill(client: Client, passages: Sequence[Passage]) -> None:
    async def made() -> bool:
        with suppress(ClusterTooOld):  # the catalog has not heard of all nodes yet
            await client.create_collection(NAME, model=WORDLLAMA.name, text="body", if_absent=True)
            return True
        return False

    await wait_for(made, START_SECONDS, "the collection")
    vectors = WORDLLAMA.embed([one.sentence for one in passages])
    for start in range(0, len(passages), BATCH):
        part = passages[start : start + BATCH]
        await client.insert_batch(
            ids=[one.id for one in part],
            vectors=vectors[start : start + BATCH],
            metadatas=[{"body": body_of(one)} for one in part],
            collection=NAME,
        )


async def run(report: Report, *, quick: bool) -> None:
    """Adds a row a kind of query and of search."""
    passages = read_corpus(stdlib_directory(), 2000 if quick else None)
    most = QUICK_QUERIES if quick else QUERIES
    kinds = {"names": names(passages, most), "codes": codes(passages, most), "questions": questions(passages)}
    beside = await asyncio.to_thread(alone, passages)
    with NeedleCluster(dimensions=None, **TIMING) as cluster:
        client = await cluster.client()
        async with client:
            await fill(client, passages)

            async def near(words: str) -> list[str]:
                return [hit.id for hit in await client.search(text=words, k=HITS, collection=NAME)]

            async def by_words(words: str) -> list[str]:
                return [hit.id for hit in await client.search(keywords=words, k=HITS, collection=NAME)]

            async def both(words: str) -> list[str]:
                return [
                    hit.id for hit in await client.hybrid_search(keywords=words, text=words, k=HITS, collection=NAME)
                ]

            await by_words("index")  # the first may wait for the index of words
            for kind, queries in kinds.items():
                what = f"{len(queries)} {kind} in {len(passages):,} docstrings"
                report.row(f"{what}, by meaning", str(await answered(queries, near)))
                other = (
                    "not installed: pip install bm25s" if beside is None else f"bm25s {await answered(queries, beside)}"
                )
                report.row(f"{what}, by words", str(await answered(queries, by_words)), other)
                report.row(f"{what}, by both", str(await answered(queries, both)))
