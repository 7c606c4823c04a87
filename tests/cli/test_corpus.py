"""The demo's documents: what is taken from a module's source, and that it is always the same."""

import textwrap
from pathlib import Path

import pytest

from needle.base.errors import StorageError
from needle.cli.demo.corpus import (
    PASSAGE_CHARACTERS,
    TEXT_CHARACTERS_MAX,
    Passage,
    codes,
    passages_of,
    read_corpus,
    split_docstring,
    stdlib_directory,
)

SOURCE = textwrap.dedent('''
    """What the module is for."""

    def plain():
        """Does   one
        thing."""
        def hidden():
            """Not reachable by name."""

    class Thing:
        """A thing."""

        async def act(self):
            """Acts."""

        class Inner:
            """Inside."""

    try:
        import fast
    except ImportError:
        def slow():
            """Without the fast one."""

    def silent(): pass
    ''')


def test_takes_every_reachable_docstring_with_its_kind() -> None:
    found = [(passage.id, passage.kind, passage.text) for passage in passages_of(SOURCE, "pkg.mod")]
    assert found == [
        ("pkg.mod", "module", "What the module is for."),
        ("pkg.mod.plain", "function", "Does one thing."),
        ("pkg.mod.Thing", "class", "A thing."),
        ("pkg.mod.Thing.act", "method", "Acts."),
        ("pkg.mod.Thing.Inner", "class", "Inside."),
        ("pkg.mod.slow", "function", "Without the fast one."),
    ]


def test_long_docstrings_become_numbered_passages() -> None:
    paragraphs = "\n\n".join(f"{letter * 200}" for letter in "abc")
    found = list(passages_of(f'def f():\n    """{paragraphs}"""\n', "m"))
    assert [passage.id for passage in found] == ["m.f", "m.f#2", "m.f#3"]
    assert [passage.text[0] for passage in found] == ["a", "b", "c"]
    assert {passage.name for passage in found} == {"f"}


def test_short_paragraphs_are_joined_and_endless_ones_cut_between_words() -> None:
    assert split_docstring("One.\n\nTwo.\n\n\n  Three.") == ["One. Two. Three."]
    (cut,) = split_docstring("word " * 1000)
    assert len(cut) <= TEXT_CHARACTERS_MAX + 4 and cut.endswith("word ...")
    assert all(len(part) <= PASSAGE_CHARACTERS for part in split_docstring("\n\n".join(["x" * 100] * 9)))


def test_sentence_reads_as_words() -> None:
    passage = Passage("a_b.__init__#2", "a_b", "method", "__init__", "Text.")
    assert passage.sentence == "a b init: Text."


def test_reads_a_tree_in_order_without_tests_and_broken_files(tmp_path: Path) -> None:
    files = {
        "b.py": '"""B."""',
        "a/__init__.py": '"""A."""',
        "a/c.py": '"""C."""',
        "test/t.py": '"""T."""',
        "site-packages/s.py": '"""S."""',
        "broken.py": "def (",
        "nul.py": '"""N."""\0',
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (tmp_path / "latin.py").write_bytes(b'"""\xff"""')
    assert [passage.id for passage in read_corpus(tmp_path)] == ["a", "a.c", "b"]
    assert [passage.id for passage in read_corpus(tmp_path, limit=2)] == ["a", "a.c"]


def test_an_interpreter_without_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no Python source"):
        read_corpus(tmp_path)


def test_this_interpreter_has_thousands_of_unique_passages() -> None:
    corpus = read_corpus(stdlib_directory())
    ids = [passage.id for passage in corpus]
    assert len(ids) > 5000 and len(set(ids)) == len(ids)
    assert {"json", "json.dumps", "shlex.split", "json.decoder.JSONDecoder.decode"} <= set(ids)
    assert not any(identifier.startswith("test.") for identifier in ids)


def test_codes_stand_in_one_passage_and_are_no_names_of_code() -> None:
    texts = {"m.a": "By RFC 2732 and utf-8.", "m.b": "As utf-8, SEEK_SET or m_c.", "m.m_c": "Nothing in 3D."}
    passages = [Passage(name, "m", "function", name.rpartition(".")[2], text) for name, text in texts.items()]
    assert codes(passages, 9) == [("RFC 2732", "m.a"), ("SEEK_SET", "m.b")]
    assert codes(passages, 1) == [("RFC 2732", "m.a")]
