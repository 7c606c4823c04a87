"""What the catalog knows of a collection, and what the shards make of it. Immutable, as the topology that holds it."""

from __future__ import annotations

import msgspec

from needle.base.dtypes import VectorForm
from needle.base.errors import invalid
from needle.base.model import CollectionSpec, IndexParams, VectorSpec
from needle.routing.collection_names import stored_vector


class NamedVector(msgspec.Struct, frozen=True, array_like=True):
    """A named vector of a collection. id: tells it from an earlier one of the same name, and from collections.
    made_index: as of CollectionInfo."""

    name: str
    id: int
    spec: VectorSpec
    made_index: IndexParams | None = None

    def is_made_as(self, spec: VectorSpec) -> bool:
        """Whether it was made so, or altered to it."""
        return self.spec.stored_as("").is_altered_from(spec.stored_as(""), self.made_index)


class CollectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """id: tells a collection from an earlier one of the same name. nonce: of the call that created it. fields: paths
    of metadata that every replica keeps an index of, ascending. made_index: what it was made with, if its index was
    altered since; shards follow the one of `spec`, each in its own time. vectors: named ones, by name. sparse: the
    fields of metadata that are sparse vectors, ascending."""

    id: int
    spec: CollectionSpec
    nonce: int = 0
    fields: tuple[str, ...] = ()
    made_index: IndexParams | None = None
    vectors: tuple[NamedVector, ...] = ()
    sparse: tuple[str, ...] = ()

    def is_made_as(self, spec: CollectionSpec) -> bool:
        """Whether it was made so, or altered to it."""
        return self.spec.is_altered_from(spec, self.made_index)

    @property
    def stored_name(self) -> str:
        """Its name inside the shards: a shard that was away must not take an old collection for a new one."""
        return f"{self.spec.name}@{self.id}"

    @property
    def stored_spec(self) -> CollectionSpec:
        """What the shards create."""
        return msgspec.structs.replace(self.spec, name=self.stored_name, ttl=0.0, model="", text=None)

    def vector(self, name: str) -> NamedVector:
        """A named vector. Raises InvalidArgument."""
        for one in self.vectors:
            if one.name == name:
                return one
        allowed = ", ".join(repr(one.name) for one in self.vectors) or "none: the collection has no named vectors"
        raise invalid("vector_name", name, allowed)

    def check_sparse(self, name: str) -> None:
        """Raises InvalidArgument unless documents of the collection have sparse vectors of this name."""
        if name not in self.sparse:
            raise invalid("sparse", name, ", ".join(map(repr, self.sparse)) or "none: it has no sparse vectors")

    def form(self, vector: str) -> VectorForm | None:
        """How a named vector is stored, by the name that users know, "" for that without one; None if there is none."""
        if not vector:
            return self.spec.form
        return next((one.spec.stored_as(vector).form for one in self.vectors if one.name == vector), None)

    def usual_ef(self, vector: str) -> int:
        """The effort of searches that say none, of a named vector by its name in the shards, or of that without one; 0
        if there is no such vector."""
        if not vector:
            return self.spec.index.ef_search
        return next((one.spec.index.ef_search for one in self.vectors if self.stored_vector(one) == vector), 0)

    def index_of(self, stored: str) -> IndexParams | None:
        """What shards are to build for it, or for a named vector of it, by the name that it has there."""
        if stored == self.stored_name:
            return self.spec.index
        return next((one.spec.index for one in self.vectors if self.stored_vector(one) == stored), None)

    @property
    def altered(self) -> list[str]:
        """What has another index than it was made with, of itself and its named vectors, by their names in shards."""
        own = [self.stored_name] if self.made_index is not None else []
        return own + [self.stored_vector(one) for one in self.vectors if one.made_index is not None]

    def stored_vector(self, one: NamedVector) -> str:
        """The name of a named vector inside the shards."""
        return stored_vector(self.stored_name, one.name, one.id)

    @property
    def stored_names(self) -> list[str]:
        """Of what shards have of it."""
        return [self.stored_name, *map(self.stored_vector, self.vectors)]

    def stored_specs(self) -> dict[str, CollectionSpec]:
        """What shards have of it, by name, in the order in which they make it: itself, and its named vectors."""
        names = {self.stored_vector(one): one.spec for one in self.vectors}
        made = {name: spec.stored_as(name, self.stored_name) for name, spec in names.items()}
        return {self.stored_name: self.stored_spec, **made}
