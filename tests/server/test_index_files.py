"""The service that takes index files which somebody brings, on a leader that is new."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from needle.base.dtypes import DType
from needle.base.errors import DeadlineExceeded
from needle.protocol.index_file_calls import ADOPTED_SINCE, IndexAdoptCall, IndexPutCall
from needle.server.service.index_files import IndexFiles

GROUP = 1
PUT = IndexPutCall(GROUP, "books", "0" * 32, 8, 0, b"12345678")
ADOPT = IndexAdoptCall(GROUP, "books", "0" * 32)


class Leader:
    """One that has applied `applied` of 10 documents so far."""

    def __init__(self, applied: int) -> None:
        self.applied = applied
        self.seen: list[int] = []
        self.alone = False
        vectors = SimpleNamespace(spec=SimpleNamespace(dtype=DType.FLOAT32))
        replica = SimpleNamespace(
            held=SimpleNamespace(vectors_of=lambda _: vectors),
            view=SimpleNamespace(collections={"books": SimpleNamespace(record=SimpleNamespace(id=1))}),
        )
        keeper = SimpleNamespace(adoption=SimpleNamespace(put=self._put, adopt=self._adopt))
        self.node = SimpleNamespace(
            hosted=lambda _: SimpleNamespace(replica=replica, keeper=keeper),
            host=SimpleNamespace(is_leader=lambda _: True, read_leased=self._read),
            topology=SimpleNamespace(cluster_version=ADOPTED_SINCE),
        )

    async def _read(self, group: int, timeout: float) -> int:
        assert group == GROUP and timeout > 0
        if self.alone:
            raise DeadlineExceeded("no majority answered")
        self.applied = 10
        return 10

    async def _put(self, *_: object) -> None:
        self.seen.append(self.applied)

    async def _adopt(self, *_: object) -> int:
        self.seen.append(self.applied)
        return self.applied


async def test_a_file_is_compared_with_all_documents_not_with_what_a_new_leader_has_applied() -> None:
    leader = Leader(applied=4)
    assert (await IndexFiles(leader.node).adopt(ADOPT)).rows == 10  # type: ignore[arg-type]
    leader = Leader(applied=4)
    await IndexFiles(leader.node).put(PUT)  # type: ignore[arg-type]
    assert leader.seen == [10], "its size is bounded by the vectors that are here"


async def test_who_may_have_lost_the_lead_takes_nothing() -> None:
    leader = Leader(applied=4)
    leader.alone = True
    for call in (IndexFiles(leader.node).adopt(ADOPT), IndexFiles(leader.node).put(PUT)):  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded):
            await call
    assert leader.seen == []
