"""What a proposer checks before a command goes into the log, and a replica before it searches.

Everything that does not depend on state is checked here, once, on the leader; `execute` re-checks on every replica what
does. Errors name the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from needle.base.config import Limits
from needle.base.dtypes import Floats
from needle.base.errors import CollectionNotFound, NeedleError, invalid
from needle.base.filters.builder import Filter, conditions, field_path
from needle.base.model import CollectionSpec, SearchRequest
from needle.protocol.commands import (
    JUDGED_MAX,
    JUDGEMENTS_MAX,
    NO_SESSION,
    ById,
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    Insert,
    LoadRows,
    Named,
    OpenSession,
    Patch,
    PinScan,
    PublishSegment,
    Session,
    Spread,
    StageSegment,
    SwitchIndex,
    UpdateVectors,
    without_repeats,
)
from needle.routing.collection_names import vector_called
from needle.shard.apply.metadata import METADATA_DEPTH_MAX, check_metadata, depth
from needle.shard.apply.named import missing
from needle.shard.apply.patching import change_bytes, named_paths
from needle.shard.apply.sessions import NONCE_MAX
from needle.shard.apply.spec_validation import EF_MAX, check_index, check_int, check_spec, utf8
from needle.shard.apply.vectors import named_to_log, queries_of, query_of, to_log
from needle.shard.documents.records import ORDINAL_MAX

VERSION_MAX: Final = 2**63 - 1
PATHS_MAX: Final = 256
"""Fields that one change names."""
PART_MAX: Final = 10_000
LOOKS_MAX: Final = 65_536
PART_BYTES_MAX: Final = 1 << 26
PART_IDS_MAX: Final = 256
"""Of one entry that changes documents by a filter: touched, looked at, their metadata's bytes, and ids that its answer
may have, which is kept."""
JUDGED_METADATA_MAX: Final = PART_BYTES_MAX
"""Of one entry, bytes of metadata of the documents that a filter chooses, times the conditions that judge them."""
FIELD_COST: Final = 64
"""To change a field of a document costs about as much as to write so many bytes."""
LOADED_FILES_MAX: Final = 4095
"""Index files of one bulk load in one shard."""
CHECKSUM: Final = re.compile("[0-9a-f]{32}")

FindSpec = Callable[[str], CollectionSpec | None]


def check_command(
    command: Command, find_spec: FindSpec, limits: Limits, collections: Callable[[], int] = int
) -> Command:
    """The command to propose (cosine vectors normalised), or InvalidArgument or CollectionNotFound. collections: how
    many exist, for the bound on them; named vectors are none."""
    session: Session = getattr(command, "session", NO_SESSION)
    if session.id:
        _check_session(session)
    if (bound := getattr(command, "bound", None)) is not None:
        check_int("bound.owner", bound.owner, 0, VERSION_MAX)
        if bound:
            _check_filter("bound.filter", bound.filter, limits)
    if type(command) is Insert:  # first: most are
        spec = _require(command.collection, find_spec)
        checked = _check_insert(command, spec, limits)
        return _check_named(checked, spec, find_spec) if checked.named else checked
    if isinstance(command, OpenSession):
        check_int("nonce", command.nonce, 0, NONCE_MAX)
        check_int("owner", command.owner, 0, VERSION_MAX)
    elif isinstance(command, CreateCollection):
        check_spec(command.spec, limits)
        new = not command.spec.of and find_spec(command.spec.name) is None
        if new and (count := collections()) >= limits.collections_max:
            raise invalid("collections", count + 1, f"at most {limits.collections_max} in a cluster")
    elif isinstance(command, DropCollection):
        _require(command.name, find_spec, vectors=True)
    elif isinstance(command, PinScan):
        _require(command.collection, find_spec)
    elif isinstance(command, Delete):
        _require(command.collection, find_spec)
        _check_spread(command, limits)
    elif isinstance(command, Patch):
        _require(command.collection, find_spec)
        _check_judged("ids", len(command.ids))
        _check_spread(command, limits)
        return msgspec.structs.replace(command, change=_checked_change(command.change, limits))
    elif isinstance(command, UpdateVectors):
        spec = _require(command.collection, find_spec)
        return _check_update(command, _vector(command.name, spec, find_spec) if command.name else spec, limits)
    elif isinstance(command, ChangeWhere):
        _require(command.collection, find_spec)
        return _check_change_where(command, limits)
    elif isinstance(command, SwitchIndex):
        check_index(command.index)
        for name in ("before", "after"):
            if not 0 <= getattr(command, name) <= 1:
                raise invalid(name, getattr(command, name), "a share, from 0 to 1")
        check_int("queries", command.queries, 0, VERSION_MAX)
    elif isinstance(command, LoadRows):
        _check_load(command)
    elif isinstance(command, PublishSegment | StageSegment):
        if isinstance(command, StageSegment):
            check_index(command.index)
        check_int("first", command.first, 0, command.last)
        check_int("rows", command.rows, 0, command.last - command.first + 1)
        check_int("size", command.size, 0, 2**63 - 1)
        if not CHECKSUM.fullmatch(command.checksum):  # it becomes part of a file's name
            raise invalid("checksum", command.checksum[:80], "32 hex digits")
    return command


def _check_load(command: LoadRows) -> None:
    check_int("rows", command.rows, 1, ORDINAL_MAX)
    check_int("size", command.size, 1, VERSION_MAX)
    if len(command.indexes) > LOADED_FILES_MAX:
        raise invalid("indexes", len(command.indexes), f"at most {LOADED_FILES_MAX} files")
    for checksum in (command.checksum, *(one.checksum for one in command.indexes)):
        if not CHECKSUM.fullmatch(checksum):  # they become parts of files' names
            raise invalid("checksum", checksum[:80], "32 hex digits")


def _check_spread(command: Spread, limits: Limits) -> None:
    _check_batch(len(command.ids), limits)
    _check_ids(command.ids, limits)
    if command.expected is not None:
        check_int("expected", command.expected, 1, VERSION_MAX)
    _check_condition(command, limits)


def _check_update(command: UpdateVectors, spec: CollectionSpec, limits: Limits) -> UpdateVectors:
    _check_judged("ids", len(command.ids))
    _check_spread(command, limits)
    if len(set(command.ids)) < len(command.ids):
        raise invalid("ids", f"{len(command.ids)} ids", "each id once")
    if len(command.vectors) > limits.batch_bytes_max:
        raise invalid("batch", f"{len(command.vectors)} bytes", f"at most {limits.batch_bytes_max} bytes of vectors")
    if command.gone:
        if command.vectors or not command.name:
            raise invalid("vectors", f"{len(command.vectors)} bytes", "none, and a name, where that vector is to go")
        return command
    vectors, dtype = to_log(command, spec)
    return command if vectors is command.vectors else msgspec.structs.replace(command, vectors=vectors, dtype=dtype)


def _check_change_where(command: ChangeWhere, limits: Limits) -> ChangeWhere:
    size = conditions(_check_filter("filter", command.filter or b"{}", limits))
    if command.bound:
        size += conditions(_check_filter("bound.filter", command.bound.filter, limits))
    for name, low, high in (
        ("after", -1, 2**32),
        ("upto", -1, 2**32),
        ("limit", 1, PART_MAX),
        ("looks", 1, LOOKS_MAX),
        ("bytes_max", 1, PART_BYTES_MAX),
    ):
        check_int(name, getattr(command, name), low, high)
    most, whole = min(command.limit, PART_IDS_MAX if command.return_ids else PART_MAX), command.bytes_max
    # All replicas do nothing else while they judge the documents of an entry, each by every condition.
    command = msgspec.structs.replace(
        command,
        limit=most,
        looks=max(1, min(command.looks, JUDGEMENTS_MAX // max(1, size))),
        bytes_max=max(1, min(command.bytes_max, JUDGED_METADATA_MAX // max(1, size))),
    )
    if command.change is None:
        return command
    change = _checked_change(command.change, limits)
    limit = max(1, min(most, whole // (1 + change_bytes(change) + FIELD_COST * len(named_paths(change)))))
    return msgspec.structs.replace(command, limit=limit, change=change)


def check_search(request: SearchRequest, spec: CollectionSpec, limits: Limits) -> Floats:
    """The query as (dimensions,) float32, normalised for cosine."""
    check_hits(request, limits)
    return query_of(request.vector, spec)


def check_searches(requests: Sequence[SearchRequest], spec: CollectionSpec, limits: Limits) -> Floats | None:
    """Of requests that differ in their vectors only, at once: (count, dimensions), the same as `check_search` of each.
    None if there is one of them, or something is wrong with some."""
    if len(requests) < 2:
        return None
    try:
        check_hits(requests[0], limits)
    except NeedleError:  # of each by itself
        return None
    return queries_of([request.vector for request in requests], spec)


def check_hits(request: SearchRequest, limits: Limits) -> None:
    """How many are asked for, and how accurately."""
    most = limits.k_max + bool(request.like)
    if request.offset and request.k > most:
        raise invalid("offset", request.offset, f"with k at most {limits.k_max} together")
    check_int("k", request.k, 1, most)
    check_int("offset", request.offset, 0, request.k - 1)
    check_int("ef_search", request.ef_search, 0, EF_MAX)


def _require(name: str, find_spec: FindSpec, *, vectors: bool = False) -> CollectionSpec:
    """Of a collection that has documents, or of a named vector of one, too: see batch.Batch.record."""
    spec = find_spec(name)
    if spec is None or (spec.of and not vectors):
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return spec


def _check_session(session: Session) -> None:
    if 0 < session.id <= VERSION_MAX and 0 <= session.acked <= session.seq and 0 < session.seq <= VERSION_MAX:
        return
    check_int("session.id", session.id, 1, VERSION_MAX)
    check_int("session.seq", session.seq, 1, VERSION_MAX)
    check_int("session.acked", session.acked, 0, session.seq)


def _check_batch(count: int, limits: Limits) -> None:
    if not 1 <= count <= limits.batch_documents_max:
        raise invalid("ids", f"{count} documents", f"1 to {limits.batch_documents_max} in a batch")


def _check_ids(ids: list[str], limits: Limits) -> None:
    for id_ in ids:
        if id_ and len(id_) <= limits.id_bytes_max and id_.isascii():
            continue  # as most are: as many bytes as characters
        if not id_ or len(id_) > limits.id_bytes_max or len(utf8("id", id_)) > limits.id_bytes_max:
            raise invalid("id", id_, f"1 to {limits.id_bytes_max} bytes of UTF-8")


def _check_judged(field: str, count: int) -> None:
    if count > JUDGED_MAX:
        raise invalid(field, f"{count} documents", f"at most {JUDGED_MAX} in a write that is judged by what is stored")


def _check_condition(command: ById, limits: Limits) -> None:
    if command.bound:
        _check_judged("ids", len(command.ids))
    if command.matches:
        _check_judged("matches", len(command.ids))
        size = conditions(_check_filter("matches", command.matches, limits))
        if size * len(command.ids) > JUDGEMENTS_MAX:
            allowed = f"a filter whose conditions, times the ids, are {JUDGEMENTS_MAX} at most"
            raise invalid("matches", f"{size} conditions for {len(command.ids)} ids", allowed)


def _check_filter(field: str, text: bytes, limits: Limits) -> Filter:
    """The filter. Also that every replica can decode it, however deep the call is that does."""
    most = METADATA_DEPTH_MAX + 2 * limits.filter_depth_max
    if text.count(b"[") + text.count(b"{") > most and depth(text) > most:
        raise invalid(field, text[:40], f"JSON nested at most {most} deep")
    return Filter.from_json(text, limits)


def _checked_change(change: Change, limits: Limits) -> Change:
    """With the bound that holds here: what is refused at apply must not depend on a replica's configuration."""
    named = named_paths(change)
    if change.whole is None and not named and not change.expires:
        raise invalid("change", "nothing", "at least one field to set, unset, append to or remove from")
    if change.whole is not None and named:
        raise invalid("change", named[0], "either the whole metadata, or fields of it")
    if len(named) > PATHS_MAX:
        raise invalid("change", f"{len(named)} fields", f"at most {PATHS_MAX}")
    size = change_bytes(change)
    if change.whole is None and size > limits.metadata_bytes_max:
        raise invalid("change", f"{size} bytes", f"at most {limits.metadata_bytes_max} bytes of JSON")
    paths = sorted(field_path(path, "change") for path in named)
    for one, other in pairwise(paths):
        if other[: len(one)] == one:
            inside = f"named beside {'.'.join(one)!r}, which holds it" if one != other else "named twice"
            raise invalid("change", ".".join(other), f"a field that is not {inside}: change it by another call first")
    if change.whole is not None and change.whole:
        check_metadata("change", change.whole, limits)
    for path, data in change.set:
        check_metadata(path, data, limits)
    for path, data in [*change.append, *change.remove]:
        check_metadata(path, data, limits)
        if not isinstance(msgspec.json.decode(data), list):
            raise invalid(f"change of {path[:80]!r}", data[:60], "a JSON array of values")
    return msgspec.structs.replace(change, bytes_max=limits.metadata_bytes_max)


def _check_named(command: Insert, spec: CollectionSpec, find_spec: FindSpec) -> Insert:
    checked: dict[str, Named] = {}
    for one in command.named:
        of = _vector(one.vector, spec, find_spec)
        rows = one.rows
        if not rows or rows[0] < 0 or rows[-1] >= len(command.ids) or any(a >= b for a, b in pairwise(rows)):
            allowed = f"places of the {len(command.ids)} documents, ascending"
            raise invalid("vectors", f"{vector_called(one.vector)!r} of {len(rows)} documents", allowed)
        if one.vector in checked:
            raise invalid("vectors", vector_called(one.vector), "each name once")
        checked[one.vector] = named_to_log(one, command.ids, of)
    return msgspec.structs.replace(command, named=list(checked.values()))


def _vector(name: str, spec: CollectionSpec, find_spec: FindSpec) -> CollectionSpec:
    found = find_spec(name)
    if found is None or found.of != spec.name:
        raise missing(name)
    return found


def _check_insert(command: Insert, spec: CollectionSpec, limits: Limits) -> Insert:
    count = len(command.ids)
    _check_batch(count, limits)
    _check_ids(command.ids, limits)
    if len(command.metadata) != count:
        raise invalid("metadata", f"{len(command.metadata)} values", f"one for each of {count} ids")
    if command.expires and len(command.expires) != count:
        raise invalid("expires_at", f"{len(command.expires)} instants", f"one for each of {count} ids")
    if count > 1 and len(command.vectors) % count == 0:
        command = without_repeats(command)
        count = len(command.ids)
    named = sum(len(one.vectors) for one in command.named)
    size = len(command.vectors) + named + sum(map(len, command.metadata))
    if size > limits.batch_bytes_max:
        raise invalid("batch", f"{size} bytes", f"at most {limits.batch_bytes_max} bytes of vectors and metadata")
    for id_, metadata in zip(command.ids, command.metadata, strict=True):
        if metadata:
            check_metadata(id_, metadata, limits)
    if command.expected is not None:
        check_int("expected", command.expected, 0, VERSION_MAX)
    if command.matches or command.bound:
        _check_condition(command, limits)
    vectors, dtype = to_log(command, spec)
    return command if vectors is command.vectors else msgspec.structs.replace(command, vectors=vectors, dtype=dtype)
