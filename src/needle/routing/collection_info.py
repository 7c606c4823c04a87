"""What the catalog knows of a collection, and what the shards make of it. Immutable, as the topology that holds it."""

from __future__ import annotations

import msgspec

from needle.base.errors import invalid
from needle.base.model import CollectionSpec, IndexParams, VectorSpec
from needle.routing.collection_names import stored_vector


class NamedVector(msgspec.Struct, frozen=True, array_like=True):
    """A named vector of a collection. id: tells it from an earlier one of the same name, and from collections."""

    name: str
    id: int
    spec: VectorSpec


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

    def usual_ef(self, vector: str) -> int:
        """The effort of searches that say none, of a named vector by its name in the shards, or of that without one; 0
        if there is no such vector."""
        if not vector:
            return self.spec.index.ef_search
        return next((one.spec.index.ef_search for one in self.vectors if self.stored_vector(one) == vector), 0)

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
