"""What a language model may ask of a cluster: tools over a client, for `needle mcp`.

Invariant: every tool has bounds on what it takes and gives, so that no answer fills a model's context by accident.
Writing tools are there only where the operator said so; beyond that, the API key's role decides, as everywhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import needle
from needle.base.errors import InvalidArgument
from needle.cli.common import as_json
from needle.client.values import metadata_bytes

HITS_MAX: Final = 100
DOCUMENTS_MAX: Final = 100
ANSWER_BYTES_MAX: Final = 256 * 1024
"""Of metadata, as JSON, in one answer: a hundred documents may have a hundred times 64 KiB."""

Collection = Annotated[str, "Name or alias of the collection."]
Where = Annotated[
    dict[str, Any] | None,
    'Only documents whose metadata matches, as {"lang": "en", "year": {"$gte": 2020}}; also $in, $contains, $and, $or.',
]
Fields = Annotated[list[str] | None, "Which fields of the metadata to give; all if nothing is said."]
Tool = Callable[..., Awaitable[Any]]


class Tools:
    """The tools of one client, which makes vectors of texts."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client

    def reading(self) -> list[Tool]:
        """Those that change nothing."""
        return [self.list_collections, self.describe_collection, self.search, self.get, self.count, self.list_documents]

    def writing(self) -> list[Tool]:
        """Those that change documents."""
        return [self.insert, self.patch, self.delete]

    async def list_collections(self) -> list[dict[str, Any]]:
        """The collections of this vector database: names, dimensions, metrics, models."""
        found: list[dict[str, Any]] = as_json(await self._client.collections())
        return found

    async def describe_collection(self, collection: Collection = "default") -> dict[str, Any]:
        """One collection: how many documents it has, its dimensions, metric, sizes and indexed fields."""
        found: dict[str, Any] = as_json(await self._client.describe_collection(collection))
        return found

    async def search(
        self,
        text: Annotated[str | None, "What to look for in words; for collections that name a model."] = None,
        like: Annotated[str | None, "The id of a document; finds what is near to it."] = None,
        vector: Annotated[list[float] | None, "The vector to search for."] = None,
        k: Annotated[int, f"How many, at most {HITS_MAX}."] = 5,
        filter: Where = None,
        fields: Fields = None,
        collection: Collection = "default",
        keywords: Annotated[str | None, "Words that documents are to have; for collections that have a `text`."] = None,
        sparse: Annotated[
            dict[str, dict[str, list[float]]] | None,
            'A sparse vector, as {"field": {"indices": [3, 17], "values": [0.5, 2]}}; the collection names the fields.',
        ] = None,
        vector_name: Annotated[str | None, "Which of the named vectors is to be near; for vector and like."] = None,
    ) -> list[dict[str, Any]]:
        """The documents nearest to a text, to a document or to a vector; or those with keywords, or that a sparse
        vector finds; or by several of these at once. The best first, with metadata and scores."""
        near = sum(one is not None for one in (text, like, vector))
        lists = near + (keywords is not None) + (sparse is not None)
        if near > 1 or not lists:
            raise InvalidArgument("give one of text, like and vector, or keywords, or sparse, or several", field="text")
        _check("k", k, HITS_MAX)
        weighed = None if sparse is None else {name: _of_integers(one) for name, one in sparse.items()}
        asked: dict[str, Any] = {
            "like": like, "text": text, "fields": fields, "vector_name": vector_name, "sparse": weighed,
            "collection": collection,
        }  # fmt: skip
        if lists > 1:
            hits = await self._client.hybrid_search(vector, keywords, k, filter, **asked)
        else:
            hits = await self._client.search(vector, k, filter, keywords=keywords, **asked)
        return _bounded([{"id": hit.id, "score": hit.score, "metadata": hit.metadata} for hit in hits])

    async def get(
        self,
        ids: Annotated[list[str], f"At most {DOCUMENTS_MAX}."],
        fields: Fields = None,
        collection: Collection = "default",
    ) -> list[dict[str, Any]]:
        """Documents by id. One that is not there is left out."""
        _check("ids", len(ids), DOCUMENTS_MAX)
        found = await self._client.get(ids, fields=fields, with_vectors=False, collection=collection)
        return _bounded([_shown(one) for one in found])

    async def count(self, filter: Where = None, collection: Collection = "default") -> int:
        """How many documents match; all if there is no filter."""
        return await self._client.count(filter, collection=collection)

    async def list_documents(
        self,
        filter: Where = None,
        cursor: Annotated[str | None, "Where the last page ended."] = None,
        limit: Annotated[int, f"At most {DOCUMENTS_MAX}."] = 20,
        fields: Fields = None,
        collection: Collection = "default",
    ) -> dict[str, Any]:
        """A page of documents that match; `cursor` of the answer asks for the next one, and is null at the end."""
        _check("limit", limit, DOCUMENTS_MAX)
        page = await self._client.scan_page(filter, cursor=cursor, limit=limit, fields=fields, collection=collection)
        return {"documents": _bounded([_shown(one) for one in page.documents]), "cursor": page.cursor}

    async def insert(
        self,
        id: str,
        text: Annotated[
            str | None, "Embedded by the model that the collection names, and kept as the field `text`."
        ] = None,
        vector: Annotated[list[float] | None, "The document's vector, instead of a text."] = None,
        metadata: Annotated[dict[str, Any] | None, "Its fields, among them sparse vectors."] = None,
        vectors: Annotated[dict[str, list[float]] | None, "Its named vectors, by name."] = None,
        collection: Collection = "default",
    ) -> dict[str, Any]:
        """Insert a document, or replace the one with this id."""
        if (text is None) == (vector is None):
            raise InvalidArgument("give either text or vector", field="text")
        kept = dict(metadata or {})
        if text is not None:
            kept["text"] = text
        written = await self._client.insert(id, vector, kept, text=text, vectors=vectors, collection=collection)
        return {"id": id, "version": written.version, "replaced": written.existed}

    async def patch(
        self,
        ids: Annotated[list[str], f"At most {DOCUMENTS_MAX}."],
        set: Annotated[dict[str, Any] | None, 'Fields to set, as {"year": 2024, "author.name": "Ada"}.'] = None,
        unset: Annotated[list[str] | None, "Fields to take away."] = None,
        collection: Collection = "default",
    ) -> dict[str, Any]:
        """Change fields of the metadata of documents; vectors stay."""
        _check("ids", len(ids), DOCUMENTS_MAX)
        written = await self._client.patch(ids, set=set, unset=unset or (), collection=collection)
        return {"patched": written.count}

    async def delete(
        self, ids: Annotated[list[str], f"At most {DOCUMENTS_MAX}."], collection: Collection = "default"
    ) -> dict[str, Any]:
        """Delete documents by id. One that is not there is no error."""
        _check("ids", len(ids), DOCUMENTS_MAX)
        written = await self._client.delete(ids, collection=collection)
        return {"deleted": written.count}


def _shown(document: needle.Document) -> dict[str, Any]:
    return {"id": document.id, "metadata": document.metadata, "version": document.version}


def _bounded(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same. Raises InvalidArgument for more than an answer may have."""
    size = sum(len(metadata_bytes(one["metadata"])) for one in documents)
    if size > ANSWER_BYTES_MAX:
        raise InvalidArgument(
            f"the answer would have {size} bytes of metadata in {len(documents)} documents, and at most "
            f"{ANSWER_BYTES_MAX} are given: ask for fewer documents, or name the `fields` that are wanted",
            field="fields", size=size, limit=ANSWER_BYTES_MAX,
        )  # fmt: skip
    return documents


def _of_integers(sparse: dict[str, list[float]]) -> dict[str, list[float]]:
    """With indices as whole numbers, which some models write as 3.0."""
    indices = [int(one) if float(one).is_integer() else one for one in sparse.get("indices", [])]
    return {**sparse, "indices": indices} if "indices" in sparse else sparse


def _check(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidArgument(f"{name} = {value} is not allowed: from 1 to {most}", field=name)
