"""Needle's own client: store, search, filter, change, count, read all, on a database in this process or on a cluster.

python examples/first_steps.py                       # in memory
python examples/first_steps.py 127.0.0.1:7001        # a cluster
"""

import sys

from words import DIMENSIONS, Words, summaries

import needle
from needle import Filter

words, found = Words(), summaries()
client = needle.connect_sync(sys.argv[1]) if len(sys.argv) > 1 else needle.open_sync(":memory:")

with client:
    client.create_collection("modules", dimensions=DIMENSIONS, if_absent=True)
    client.insert_batch(
        ids=[one.module for one in found],
        vectors=words.embed([f"{one.module}: {one.text}" for one in found]),
        metadatas=[{"text": one.text, "lines": one.lines} for one in found],
        collection="modules",
    )
    print(f"{client.count(collection='modules')} modules are stored")

    question = words.embed(["read and write comma separated values"])[0]
    print("nearest to the question:")
    for hit in client.search(question, k=3, collection="modules"):
        print(f"  {hit.id:12} {hit.distance:.3f}  {hit.metadata['text']}")

    print("of the short ones:")
    for hit in client.search(question, k=3, filter=Filter.lt("lines", 300), collection="modules"):
        print(f"  {hit.id:12} {hit.metadata['lines']} lines")

    client.patch("csv", set={"starred": True}, collection="modules")
    starred = [one.id for one in client.scan(Filter.eq("starred", True), collection="modules")]
    print(f"starred: {', '.join(starred)}")

    gone = client.delete_where(Filter.lt("lines", 50), collection="modules")
    print(f"{gone.count} with less than 50 lines were deleted, {client.count(collection='modules')} are left")
