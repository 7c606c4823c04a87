"""A collection that the catalog has made or dropped, of which a shard answers something that nobody expected."""

from __future__ import annotations

import msgspec
import pytest

from catalog.catalog_util import spec
from client.fake_shards import FakeShards, virtually
from needle.base.errors import Internal, InvalidArgument, NeedleError, NoQuorum, OutcomeUnknown, StorageError
from needle.base.model import WriteResult
from needle.base.versions import SPARSE
from needle.client.router.router import Router
from needle.protocol import catalog_commands
from needle.protocol.peer_calls import IndexRoom


class Catalog(FakeShards):
    """Takes every command; shard 2 answers with `said`."""

    def __init__(self, said: NeedleError) -> None:
        super().__init__()
        self.real = self.known = msgspec.structs.replace(self.real, cluster_version=SPARSE)
        self._said = said
        self.by_log: set[int] = set()

    def nonce(self) -> int:
        return 1

    async def command(self, command: catalog_commands.CatalogCommand, timeout: float) -> WriteResult:
        return WriteResult(version=9, index=9)

    async def index_room(self, shard: int, collection: str, path: str, timeout: float, kind: str = "") -> IndexRoom:
        return IndexRoom(1, 1)

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        if by_log:
            self.by_log.add(shard)
        if shard == 2:
            raise self._said


@pytest.mark.parametrize("said", [NoQuorum("x"), Internal("x"), StorageError("x"), InvalidArgument("x")], ids=type)
def test_what_the_catalog_has_done_is_not_said_to_have_failed(said: NeedleError) -> None:
    async def work() -> None:
        router = Router(Catalog(said))
        assert (await router.create_collection(spec("new"), False, 5)).version == 9
        with pytest.raises(OutcomeUnknown, match="shards 2 did not confirm"):
            await router.drop_collection("default", 5)

    virtually(work())


def test_later_leaders_know_which_fields_are_sparse_vectors() -> None:
    """A leader that does not would take what is none: their logs say no more than that a collection is there."""

    async def work() -> None:
        for declared in (True, False):
            shards = Catalog(NoQuorum("x"))
            with pytest.raises(OutcomeUnknown, match="shards 2 did not confirm"):
                await Router(shards).declare_sparse("default", "splade", declared, 5)
            assert shards.by_log == {0, 1, 2, 3}
        for sparse, told in ((["splade"], {0, 1, 2, 3}), ([], set())):
            shards = Catalog(NoQuorum("x"))
            await Router(shards).create_collection(spec("new"), False, 5, (), (), sparse)
            assert shards.by_log == told

    virtually(work())
