"""Node processes of which something is not as it should be: a module that Python imports at their start changes it."""

from __future__ import annotations

from pathlib import Path

from needle.local.node_process import NodeProcess

OTHER_SUMS = """
import msgspec
import needle.protocol.commands as commands
_decode = commands.decode_logged
def _other(data):
    found = _decode(data)
    if not isinstance(found, commands.Insert):
        return found
    return msgspec.structs.replace(found, metadata=[b'{"other":1}'] * len(found.ids))
commands.decode_logged = _other
"""
"""Executes inserts in another way than the other replicas: a bug that must never be."""

OTHER_CATALOG = """
import msgspec
from needle.catalog import machine
_execute = machine.execute_once
def _other(topology, executed, index, data):
    topology, executed, result = _execute(topology, executed, index, data)
    nodes = [msgspec.structs.replace(one, weight=one.weight + 1) for one in topology.nodes]
    return msgspec.structs.replace(topology, nodes=nodes), executed, result
machine.execute_once = _other
"""
"""Executes what the catalog is told in another way than its other replicas."""
LOST_COLLECTION = """
import msgspec
from needle.catalog.machine import CatalogMachine
_with_rows = CatalogMachine._with_rows
def _older(self, stored):
    state, _ = _with_rows(self, stored)
    kept = tuple(one for one in state.topology.collections if one.spec.name != 'lost')
    return msgspec.structs.replace(state, topology=msgspec.structs.replace(state.topology, collections=kept)), False
CatalogMachine._with_rows = _older
"""
"""Opens its catalog as an older copy, from before there was a collection of the name `lost`."""
FEW_VERSIONS = """
import needle.shard.documents.records as records
records.ORDINAL_MAX, records.ORDINAL_WARN = 1000, 500
"""
"""A collection takes a thousand document versions in a shard, instead of 2^32 - 1."""
NEXT_RELEASE = """
import needle.base.versions as versions
versions.KNOWN += 1
"""
"""Knows one version more of commands and formats."""
UNSAVED = """
import errno, os
from needle.base.file_errors import os_failure
from needle.shard.documents.store import DocumentStore
_checkpoint = DocumentStore.checkpoint
def _refused(self, **how):
    if os.path.exists(PATH):
        raise os_failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), self.writer.path)
    return _checkpoint(self, **how)
DocumentStore.checkpoint = _refused
"""
"""The disk has no room for checkpoints of documents while the file PATH is there, so the log is not cut."""
HANGING_DISK = """
import os, time
_sync = os.fdatasync
def _hangs(handle):
    time.sleep(0.01)
    while os.path.exists(PATH):
        time.sleep(0.05)
    return _sync(handle)
os.fdatasync = _hangs
"""
"""Syncs take ten milliseconds, so a thread makes them; and they do not end while the file PATH is there."""


def hangs_by(path: Path) -> str:
    """How to have a node fall ill with a disk that hangs while there is a file at `path`."""
    return HANGING_DISK.replace("PATH", repr(str(path)))


def unsaved_by(path: Path) -> str:
    """How to have a node fall ill with a disk that has no room for checkpoints while there is a file at `path`."""
    return UNSAVED.replace("PATH", repr(str(path)))


def fall_ill(node: NodeProcess, directory: Path, how: str) -> None:
    """From its next start on."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(how, encoding="utf-8")
    node.source = directory
