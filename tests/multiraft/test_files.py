"""What has a second name is never written to: it may be an index file that is mapped under that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from needle.base.errors import StorageError
from needle.multiraft.files import Files


def test_a_linked_file_is_replaced_or_left_alone(tmp_path: Path) -> None:
    mapped, staged = tmp_path / "segments" / "a.seg", tmp_path / "snapshots" / "a.seg"
    mapped.parent.mkdir()
    mapped.write_bytes(b"0123456789")
    files = Files()
    files.link(str(mapped), str(staged))
    for offset in (4, 10):
        with pytest.raises(StorageError, match="another name"):
            files.write_at(str(staged), offset, b"x")
    assert mapped.read_bytes() == b"0123456789"
    files.write_at(str(staged), 0, b"new")
    files.write_at(str(staged), 3, b"er")
    assert (mapped.read_bytes(), staged.read_bytes()) == (b"0123456789", b"newer")
