"""Waits until what was restored is searched by index files, as it was before: until then searches score vectors one by
one, which is exact and slower.

What has to be built each shard's leader says (`IndexProgress.waiting`); a leader of a release before this one says
nothing, so nothing is waited for. It must not know backups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from needle.backup.around import REAL, Around
from needle.base.errors import NeedleError
from needle.client import Client

LOOK_SECONDS: Final = 1.0


async def wait_indexed(
    client: Client,
    collections: Collection[str],
    *,
    progress: Callable[[int, int], None] = lambda _searched, _documents: None,
    timeout: float = 30.0,
    around: Around = REAL,
) -> None:
    """Wait until as many documents of these collections are searched by index files as there are now, but for so few
    that none is built of them; of what is written meanwhile some always wait. progress: told how many are, of how many.
    timeout: seconds for one call. A collection that is dropped is not waited for. Raises what will not pass by
    itself; it ends by nothing but that index files are built."""
    wanted, there = set(collections), -1
    while True:
        try:
            found = await client.describe_collections(timeout=timeout)
        except NeedleError as error:
            if not error.retryable:
                raise
        else:
            sizes = [one.size for one in found if one.name in wanted and one.size is not None]
            documents, waiting = sum(one.documents for one in sizes), sum(one.index.waiting for one in sizes)
            progress(max(0, documents - waiting), documents)
            there = documents if there < 0 else there
            if documents - waiting >= there:
                return
        await around.rest(LOOK_SECONDS)
