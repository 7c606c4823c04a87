"""Between LlamaIndex's nodes and Needle's documents.

A node is stored under its id with its embedding. Its metadata stands under `metadata`, where filters find it; the node
itself, as LlamaIndex writes it, under `node`, and the id of the document that it is a part of under `ref_doc_id`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

import needle


def stored(nodes: Sequence[BaseNode]) -> tuple[list[str], list[list[float]], list[dict[str, Any]]]:
    """Ids, vectors and metadata. Raises ValueError for a node without an embedding."""
    kept = []
    for node in nodes:
        written = node_to_metadata_dict(node)
        kept.append(
            {
                "metadata": node.model_dump(mode="json")["metadata"],
                "node": written["_node_content"],
                "node_type": written["_node_type"],
                "ref_doc_id": node.ref_doc_id,
            }
        )
    return [node.node_id for node in nodes], [node.get_embedding() for node in nodes], kept


def node_of(kept: Any, vector: Any = None) -> BaseNode:
    """What was stored; its metadata as it is by now, also if another program changed it."""
    node = metadata_dict_to_node({"_node_content": kept["node"], "_node_type": kept["node_type"]})
    node.metadata = kept["metadata"]
    if vector is not None:
        node.embedding = vector.tolist()
    return node


def nodes_of(found: Iterable[needle.Document]) -> list[BaseNode]:
    """With their embeddings, which a collection with the metric cosine keeps as directions."""
    return [node_of(one.metadata, one.vector) for one in found]


def result_of(hits: Iterable[needle.Hit]) -> VectorStoreQueryResult:
    """Nearest first; similarities are needle's scores: higher is nearer."""
    found = list(hits)
    return VectorStoreQueryResult(
        nodes=[node_of(hit.metadata) for hit in found],
        similarities=[hit.score for hit in found],
        ids=[hit.id for hit in found],
    )
