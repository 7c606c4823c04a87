"""Collections of the catalog and their aliases. Pure.

Invariant: ids of collections are never used again, and a name is one collection or one alias.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter

import msgspec

from needle.base.errors import CollectionExists, CollectionNotFound, invalid
from needle.base.model import KINDS_OF, CollectionSpec, IndexParams, VectorChange
from needle.catalog.changed import Changed, done, need_cluster
from needle.protocol.catalog_commands import (
    AlterCollection,
    CreateCollection,
    DeclareField,
    DropCollection,
    RemoveAlias,
    SetAlias,
)
from needle.protocol.vector_commands import VectorCommand
from needle.routing.topology import AliasInfo, CollectionInfo, NamedVector, Topology, vector_id
from needle.routing.topology_changes import remember

COLLECTIONS_MAX = 10_000
ALIASES_MAX = 1000
DROPPED_MAX = 4096
FIELDS_MAX = 64
"""Declared fields of a collection."""
VECTORS_MAX = 16
"""Named vectors of a collection, and sparse ones."""

_replace = msgspec.structs.replace
_name = attrgetter("spec.name")


def create(now: Topology, index: int, command: CreateCollection) -> Changed:
    need_cluster(now)
    name = command.spec.name
    found = now.named(name)
    if (alias := now.alias(name)) is not None:
        raise CollectionExists(f"{name!r} is an alias, of collection {alias.collection!r}", collection=name)
    if found is not None:
        same = command.if_absent and found.is_made_as(command.spec) and _has(found, command)
        if found.nonce == command.nonce or same:
            return done(now, index, found.id, existed=found.nonce != command.nonce)
        raise CollectionExists(f"collection {name!r} exists{_difference(found, command)}", collection=name)
    if len(now.collections) >= COLLECTIONS_MAX:
        raise invalid("collection", name, f"one of at most {COLLECTIONS_MAX}")
    if len(command.fields) > FIELDS_MAX:
        raise invalid("fields", f"{len(command.fields)} paths", f"at most {FIELDS_MAX} declared ones of a collection")
    fields = tuple(sorted(set(command.fields)))
    if len(command.vectors) > VECTORS_MAX:
        raise invalid("vectors", f"{len(command.vectors)} names", f"at most {VECTORS_MAX} of a collection")
    named = enumerate(sorted(command.vectors, key=lambda pair: pair[0]))
    vectors = tuple(NamedVector(one, vector_id(index, at), spec) for at, (one, spec) in named)
    if len(command.sparse) > VECTORS_MAX:
        raise invalid("sparse", f"{len(command.sparse)} names", f"at most {VECTORS_MAX} of a collection")
    sparse = tuple(sorted(set(command.sparse)))
    made = CollectionInfo(
        id=index, spec=command.spec, nonce=command.nonce, fields=fields, vectors=vectors, sparse=sparse
    )
    at = bisect_left(now.collections, name, key=_name)
    rows = (*now.collections[:at], made, *now.collections[at:])
    remember(now.collections, rows, (), (made,))
    return done(_replace(now, collections=rows), index)


def _has(found: CollectionInfo, command: CreateCollection) -> bool:
    """Whether it has the named and sparse vectors that it is to be made with. It may have got more."""
    there = {one.name: one for one in found.vectors}
    known = all(name in there and there[name].is_made_as(spec) for name, spec in command.vectors)
    return known and {*command.sparse} <= {*found.sparse}


def _difference(found: CollectionInfo, command: CreateCollection) -> str:
    there, wanted = _settings(found.spec), _settings(command.spec)
    told = [f"{name} {value}, not {wanted[name]}" for name, value in there.items() if value != wanted[name]]
    if not told and not _has(found, command):
        told = ["other named vectors" if {*command.sparse} <= {*found.sparse} else "other sparse vectors"]
    return f", with {', '.join(told)}" if told else ""


def _settings(spec: CollectionSpec) -> dict[str, object]:
    """By the names that callers know."""
    index = {f"index.{name}": value for name, value in msgspec.structs.asdict(spec.index).items()}
    return {
        "dimensions": spec.dimensions,
        "metric": str(spec.metric),
        "dtype": str(spec.dtype),
        **index,
        "ttl": f"{spec.ttl:g}",
        "model": repr(spec.model),
        "text": "none" if spec.text is None else f"{spec.text.field!r} ({spec.text.language})",
    }


def drop(now: Topology, index: int, command: DropCollection) -> Changed:
    gone = now.named(command.name)
    if gone is None or gone.id != command.id:
        return done(now, index, now.version, existed=False)
    led = [alias.name for alias in now.aliases if alias.collection == command.name]
    if led:
        names = ", ".join(map(repr, led[:10]))
        raise invalid("collection", command.name, f"one without an alias: remove {names}, or let them lead elsewhere")
    at = bisect_left(now.collections, command.name, key=_name)
    left = now.collections[:at] + now.collections[at + 1 :]
    remember(now.collections, left, (gone,), ())
    dropped = (*now.dropped, command.id, *(-one.id for one in gone.vectors))[-DROPPED_MAX:]
    return done(_replace(now, collections=left, dropped=dropped), index, existed=True)


def found_in(now: Topology, command: AlterCollection | DeclareField | VectorCommand) -> CollectionInfo:
    """The collection that a command is about. Raises CollectionNotFound."""
    found = now.named(command.name)
    if found is None or found.id != command.id:
        raise CollectionNotFound(f"there is no collection {command.name!r}", collection=command.name)
    return found


def with_collection(now: Topology, found: CollectionInfo, made: CollectionInfo) -> Topology:
    """With `made` in place of what was found."""
    at = bisect_left(now.collections, found.spec.name, key=_name)
    rows = (*now.collections[:at], made, *now.collections[at + 1 :])
    if made != found:
        remember(now.collections, rows, (found,), (made,))
    return _replace(now, collections=rows)


def alter(now: Topology, index: int, command: AlterCollection) -> Changed:
    found = found_in(now, command)
    held = found.spec
    ef_search = command.ef_search or held.index.ef_search
    ttl = held.ttl if command.ttl < 0 else command.ttl
    wanted = command.index or _replace(held.index, ef_search=ef_search)
    if wanted.kind not in KINDS_OF[held.dtype]:
        raise invalid("index.kind", wanted.kind, f"one of {', '.join(KINDS_OF[held.dtype])} for dtype {held.dtype}")
    spec, changes = _replace(held, index=wanted, ttl=ttl), {one.name: one for one in command.vectors}
    for name in changes:
        found.vector(name)
    vectors = tuple(_altered(one, changes[one.name]) if one.name in changes else one for one in found.vectors)
    if (spec, vectors) == (held, found.vectors):
        return done(now, index, now.version, existed=True)
    first = _first(held.index, wanted, found.made_index)
    made = with_collection(now, found, _replace(found, spec=spec, made_index=first, vectors=vectors))
    return done(made if ttl == held.ttl else _refusing_older(made), index, existed=True)


def _first(held: IndexParams, wanted: IndexParams, made: IndexParams | None) -> IndexParams | None:
    """What something was made with, once it is altered."""
    return held if made is None and wanted.built != held.built else made


def _altered(vector: NamedVector, change: VectorChange) -> NamedVector:
    """Raises InvalidArgument."""
    spec = vector.spec
    wanted = change.index or spec.index
    if change.ef_search:
        wanted = _replace(wanted, ef_search=change.ef_search)
    if wanted.kind not in KINDS_OF[spec.dtype]:
        allowed = f"one of {', '.join(KINDS_OF[spec.dtype])} for dtype {spec.dtype}"
        raise invalid(f"vectors[{vector.name!r}].index.kind", wanted.kind, allowed)
    first = _first(spec.index, wanted, vector.made_index)
    return _replace(vector, spec=_replace(spec, index=wanted), made_index=first)


def declare_field(now: Topology, index: int, command: DeclareField) -> Changed:
    found, path = found_in(now, command), command.path
    if command.declared == (path in found.fields):
        if not command.declared:
            declared = ", ".join(map(repr, found.fields)) or "none is"
            raise invalid("field", path, f"a field with a declared index: {declared}")
        return done(now, index, now.version, existed=True)
    if command.declared and len(found.fields) >= FIELDS_MAX:
        raise invalid("field", path, f"one of at most {FIELDS_MAX} declared ones of a collection")
    fields = {*found.fields, path} if command.declared else set(found.fields) - {path}
    return done(
        with_collection(now, found, _replace(found, fields=tuple(sorted(fields)))), index, existed=not command.declared
    )


def check_alias(now: Topology, name: str, leads_to: str, *, made_later: bool = False) -> None:
    """Whether a name can lead to a collection. made_later: which need not be there yet. Raises CollectionExists,
    CollectionNotFound, InvalidArgument, in the order in which all releases look: replicas compare what they remember
    of refusals, too."""
    if leads_to == name:
        raise invalid("alias", name, "another name than that of what it leads to")
    if now.named(name) is not None:
        raise CollectionExists(f"{name!r} is a collection, and can be no alias", collection=name)
    if (other := now.alias(leads_to)) is not None:
        raise invalid("collection", leads_to, f"a collection, not an alias: {other.collection!r} is what it leads to")
    if now.named(leads_to) is None and not made_later:
        raise CollectionNotFound(f"there is no collection {leads_to!r}", collection=leads_to)
    if now.alias(name) is None and len(now.aliases) >= ALIASES_MAX:
        raise invalid("alias", name, f"one of at most {ALIASES_MAX}")


def set_alias(now: Topology, index: int, command: SetAlias) -> Changed:
    need_cluster(now)
    name, leads_to = command.alias, command.collection
    check_alias(now, name, leads_to)
    before = now.alias(name)
    if before is not None and before.collection == leads_to:
        return done(now, index, now.version, existed=True)
    others = [alias for alias in now.aliases if alias is not before]
    aliases = tuple(sorted([*others, AliasInfo(name, leads_to)], key=lambda alias: alias.name))
    made = _replace(now, aliases=aliases)
    return done(made if before is None else _refusing_older(made), index, existed=before is not None)


def remove_alias(now: Topology, index: int, command: RemoveAlias) -> Changed:
    if now.alias(command.alias) is None:
        raise CollectionNotFound(f"there is no alias {command.alias!r}", collection=command.alias)
    left = tuple(alias for alias in now.aliases if alias.name != command.alias)
    return done(_refusing_older(_replace(now, aliases=left)), index, existed=True)


def _refusing_older(now: Topology) -> Topology:
    """With a map by which shards refuse who knows only an older catalog."""
    return now if now.map is None else _replace(now, map=_replace(now.map, epoch=now.map.epoch + 1))
