"""Named vectors of documents: each name is a collection of its own inside the shard, whose versions have the ordinals
of the documents that have such a vector (docs/adr/0118).

Invariant: after each entry such a collection has exactly one version of each document that has the vector, with the
ordinal and the version number of the document; so what a filter allows is the same for all vectors of a document, and
the ordinals that are missing are those of documents without it. It writes no metadata, and nothing of it expires or is
hidden by itself: that is the documents'.

Deterministic, as `execute` says.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import pairwise

from needle.base.errors import CollectionNotFound, Internal, invalid
from needle.base.model import CollectionSpec
from needle.protocol.commands import Named
from needle.routing.collection_names import called, collection_of, vector_called
from needle.shard.apply.changes import CollectionChange
from needle.shard.documents.digest import MODULUS, document_hash, rehashed
from needle.shard.documents.records import CollectionRecord, DocRef
from needle.shard.effects import ABSENT, DELETED, WRITTEN, Effect

Given = Mapping[str, bytes | memoryview | None]
"""By id, the vector that a document gets; None: it has none any more."""
ByVector = Mapping[str, Given]
"""So, by the name of a vector inside the shard."""


def vectors_in(named: Sequence[Named], ids: Sequence[str], specs: Mapping[str, CollectionSpec]) -> ByVector:
    """The named vectors of a command. specs: of those that its collection has. Raises CollectionNotFound for another
    one, InvalidArgument for vectors that do not fit."""
    found: dict[str, Given] = {}
    for one in named:
        check_named(one, len(ids), found, specs)
        width, block = specs[one.vector].vector_bytes, memoryview(one.vectors)
        found[one.vector] = {ids[row]: block[at * width : (at + 1) * width] for at, row in enumerate(one.rows)}
    return found


def check_named(one: Named, documents: int, before: Mapping[str, object], specs: Mapping[str, CollectionSpec]) -> None:
    """before: the vectors that were named before it. Raises as `vectors_in`."""
    spec = specs.get(one.vector)
    if spec is None:
        raise missing(one.vector)
    name, form, rows = vector_called(one.vector), spec.form, one.rows
    if one.vector in before:
        raise invalid("vectors", name, "each name once")
    if not rows or rows[0] < 0 or rows[-1] >= documents or any(a >= b for a, b in pairwise(rows)):
        raise invalid("vectors", f"{name!r} for {len(rows)} documents", f"places of {documents} documents, ascending")
    if one.dtype != form.dtype or len(one.vectors) != len(rows) * form.row_bytes:
        there = f"{name!r} with {len(one.vectors)} bytes of {one.dtype}"
        raise invalid("vectors", there, f"{len(rows)} documents x {form.numbers} {form.dtype} values")


def missing(vector: str) -> CollectionNotFound:
    """For who names a vector that the collection does not have."""
    collection = collection_of(vector)
    return CollectionNotFound(
        f"collection {called(collection)[:80]!r} has no vector {vector_called(vector)[:80]!r}",
        collection=collection[:80],
        vector=vector_called(vector)[:80],
    )


def follow(
    documents: CollectionChange, change: CollectionChange, ids: Sequence[str], given: Given, *, keep: bool
) -> CollectionRecord | None:  # fmt: skip
    """Bring the vectors of one name to where the documents are, of which these have just been written, in the order of
    their ordinals, or deleted. given: the vectors that came. keep: what was not given stays; else it is gone. Returns
    the record, None if nothing changed."""
    record, refs, before = change.record, change.refs, len(change.written)
    end, held, total, touched = record.next_ordinal, record.documents, record.total, before
    for id_ in ids:
        old, now, vector = refs.get(id_), documents.refs[id_], given.get(id_)
        if old is None and vector is None:
            continue
        touched += 1
        stays = vector is not None or (keep and id_ not in given)
        held += stays - (old is not None)
        if old is not None:
            change.dies(id_, old)
            total -= int.from_bytes(old.hash, "little")
        if not stays:
            change.dead_vectors.append(_there(old).vector)
            refs[id_] = change.written[id_] = None
            continue
        if now is None:
            raise Internal(f"document {id_[:80]!r} has vectors and is not there")
        ref = _kept(_there(old), id_, now) if vector is None else _brought(id_, now, vector)
        total, end = total + int.from_bytes(ref.hash, "little"), ref.ordinal + 1
        if vector is None:
            change.kept.append((ref.ordinal, ref.vector))
        else:
            change.vectors.append(vector)
            if old is not None:
                change.dead_vectors.append(old.vector)
        change.version(id_, ref, b"")
    if touched == before:
        return None
    change.touched = True
    return CollectionRecord(id=record.id, spec=record.spec, next_ordinal=end, documents=held, total=total % MODULUS)


def follow_and_tell(
    documents: CollectionChange, change: CollectionChange, ids: Sequence[str], given: Given,
    effects: list[Effect], *, keep: bool, telling: int,
) -> None:  # fmt: skip
    """As `follow`, and add to `effects` which rows that wrote, and let die: a change feed may have to read them. They
    have no changes of their own: those are the documents'. telling: as in Batch."""
    before = {id_: change.refs.get(id_) for id_ in ids} if telling else {}
    record = follow(documents, change, ids, given, keep=keep)
    change.record = record or change.record
    if record is None or not telling:
        return
    runs: list[tuple[int, list[DocRef | None]]] = []
    olds, gone, kept = list[DocRef | None](), list[DocRef | None](), set[int]()
    for id_, old in before.items():
        new = change.refs.get(id_)
        if new is None:
            gone += [] if old is None else [old]
            continue
        kept.add(new.vector)
        if not runs or runs[-1][0] + len(olds) != new.ordinal:
            olds = []
            runs.append((new.ordinal, olds))
        olds.append(old)
    effects += [_effect(telling, WRITTEN, record.id, first, olds, kept) for first, olds in runs]
    effects += [_effect(telling, DELETED, record.id, 0, gone, kept)] if gone else []


def _effect(
    entry: int, kind: int, collection_id: int, first: int, olds: Sequence[DocRef | None], kept: Container[int]
) -> Effect:
    """kept: vectors that live on."""
    dead = tuple(old.vector for old in olds if old and old.vector != old.ordinal and old.vector not in kept)
    return Effect(entry, kind, collection_id, 0, first, tuple(old.ordinal if old else ABSENT for old in olds), dead)


def _there(ref: DocRef | None) -> DocRef:
    if ref is None:
        raise Internal("a vector that is not there")
    return ref


def _kept(old: DocRef, id_: str, now: DocRef) -> DocRef:
    hash_ = rehashed(old.hash, id_, (old.ordinal, old.version, b"", 0), (now.ordinal, now.version, b"", 0))
    return DocRef(now.ordinal, now.version, hash_, old.vector)


def _brought(id_: str, now: DocRef, vector: bytes | memoryview) -> DocRef:
    hash_ = document_hash(now.ordinal, now.version, id_, b"", now.ordinal, vector)
    return DocRef(now.ordinal, now.version, hash_, now.ordinal)
