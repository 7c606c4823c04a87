"""The model of written documents finds every wrong answer, and takes every right one."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from cluster.modelled import Model, Stored
from needle.base.model import Document, Hit


def _stored(x: float, **metadata: Any) -> Stored:
    return Stored(np.array([x, 0.0], np.float32), metadata)


def _model(**documents: Stored) -> Model:
    model = Model()
    for version, (name, state) in enumerate(documents.items(), 1):
        model.write({name: state})
        model.written({name: state}, version)
    return model


def _hit(name: str, distance: float, version: int, **metadata: Any) -> Hit:
    return Hit(id=name, distance=distance, score=-distance, metadata=metadata, version=version)


ORIGIN = np.zeros(2, np.float32)
RIGHT = [_hit("a", 1.0, 1, even=True), _hit("b", 2.0, 2, even=True)]


def _three() -> Model:
    return _model(a=_stored(1, even=True), b=_stored(2, even=True), c=_stored(3, even=False))


def test_the_nearest_are_right() -> None:
    model = _three()
    model.judge_search(model.ask(), ORIGIN, 2, RIGHT)
    model.judge_search(model.ask(), ORIGIN, 9, RIGHT, {"even": True})


@pytest.mark.parametrize(
    "hits",
    [
        [],
        RIGHT[:1],
        RIGHT[::-1],
        [RIGHT[0], RIGHT[0]],
        [RIGHT[0], _hit("c", 3.0, 3, even=False)],
        [RIGHT[0], _hit("strange", 2.0, 2, even=True)],
        [RIGHT[0], msgspec.structs.replace(RIGHT[1], distance=2.5)],
        [RIGHT[0], msgspec.structs.replace(RIGHT[1], version=1)],
        [RIGHT[0], msgspec.structs.replace(RIGHT[1], metadata={})],
        [RIGHT[0], msgspec.structs.replace(RIGHT[1], vector=ORIGIN)],
    ],
    ids=["none", "one", "order", "twice", "farther", "strange", "distance", "version", "metadata", "vector"],
)
def test_a_wrong_search_is_found(hits: list[Hit]) -> None:
    model = _three()
    with pytest.raises(AssertionError):
        model.judge_search(model.ask(), ORIGIN, 2, hits)


def test_a_filtered_search_may_hold_nothing_else() -> None:
    model = _three()
    with pytest.raises(AssertionError):
        model.judge_search(model.ask(), ORIGIN, 9, [*RIGHT, _hit("c", 3.0, 3, even=False)], {"even": True})


def test_while_a_document_is_written_both_states_are_right() -> None:
    model, new = _model(a=_stored(1)), _stored(5)
    asked, other = model.ask(), model.ask()
    model.write({"a": new})
    model.judge_search(asked, ORIGIN, 9, [_hit("a", 1.0, 1)])
    model.written({"a": new}, 2)
    model.judge_search(other, ORIGIN, 9, [_hit("a", 5.0, 2)])
    with pytest.raises(AssertionError):
        model.judge_search(model.ask(), ORIGIN, 9, [_hit("a", 1.0, 1)])


def test_a_deleted_document_is_a_wrong_hit() -> None:
    model = _model(a=_stored(1))
    asked = model.ask()
    model.write({"a": None})
    model.written({"a": None})
    model.judge_search(asked, ORIGIN, 9, [])
    with pytest.raises(AssertionError):
        model.judge_search(model.ask(), ORIGIN, 9, [_hit("a", 1.0, 1)])


def test_a_read_document_has_its_last_state() -> None:
    model = _model(a=_stored(1, n=1))
    right = Document(id="a", vector=np.array([1, 0], np.float32), metadata={"n": 1}, version=1)
    model.judge_get(model.ask(), "a", right)
    for wrong in (None, *(msgspec.structs.replace(right, **{f: v}) for f, v in _WRONG.items())):
        with pytest.raises(AssertionError):
            model.judge_get(model.ask(), "a", wrong)


_WRONG: dict[str, Any] = {"id": "b", "vector": ORIGIN, "metadata": {}, "version": 2}


def test_a_version_never_goes_back() -> None:
    model, new = _model(a=_stored(1), b=_stored(2)), _stored(3)
    model.write({"b": new})
    with pytest.raises(AssertionError):
        model.written({"b": new}, 2)
