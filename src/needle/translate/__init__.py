"""Filters of other databases as Filters: `translate.qdrant`, `translate.chroma`, `translate.langchain`.

Each takes what people have in their code, and means here what it means there; what cannot is refused, never guessed.
"""

from needle.translate.from_chroma import chroma as chroma
from needle.translate.from_langchain import langchain as langchain
from needle.translate.from_qdrant import qdrant as qdrant
