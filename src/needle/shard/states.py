"""Which state directory a replica works on: opens it, knows whether it is damaged, and goes over to another one when an
image is installed (documents/image.py).

Invariant: what was found damaged is never opened again, also after a restart. A state that was swapped in and cannot be
opened for want of room or file handles stays to be opened; the former one is read until then.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Final

import immutables

from needle.base.errors import CorruptDocuments, CorruptSnapshot, StorageError
from needle.base.file_errors import SHORTAGES
from needle.shard.apply.sessions import SessionTable
from needle.shard.documents.image import DAMAGED, current_state, install_image, remove_older, verify_image
from needle.shard.documents.records import AppliedAt
from needle.shard.documents.row_check import verify_image_file
from needle.shard.documents.sqlite_file import FILE_NAME
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import ReplicaView
from needle.shard.open_collections import OpenCollections
from needle.shard.opened_state import OpenedState, Surroundings

log = logging.getLogger("needle.shard")

NOTHING: Final = ReplicaView(AppliedAt(), immutables.Map())
"""What a replica knows whose state could not be opened, as if it were new: nobody is to see it before a snapshot is
installed."""


class States:
    """Of one replica. `found_damage`, `remove_left`, `view` and `opened` may be used by any thread, the others by one
    thread at a time."""

    def __init__(self, directory: str, around: Surroundings, in_flight: InFlight) -> None:
        self._directory = directory
        self._around = around
        self._in_flight = in_flight
        self._checked = ""
        """The directory of the image whose rows were checked last."""
        self._installed: tuple[str, str] | None = None
        """An image and the state directory made of it: CURRENT names it, and it is not open yet."""
        self._left = ""
        """The state directory before which there is something to delete, which nobody uses any more; "" if not."""
        self._state = ""
        self.opened: OpenedState | None = None
        self.damage: CorruptDocuments | None = None
        """Why nothing is answered. Set by whichever thread finds it."""

    @property
    def view(self) -> ReplicaView:
        """What a search would see now."""
        return NOTHING if self.opened is None else self.opened.view

    @property
    def live(self) -> OpenCollections:
        return OpenCollections() if self.opened is None else self.opened.live

    @property
    def sessions(self) -> SessionTable:
        return SessionTable() if self.opened is None else self.opened.sessions

    @property
    def segment_directory(self) -> str:
        """Where the index files are; "" if no state is open."""
        return "" if self.opened is None else self.opened.segment_directory

    def similar_file(self, name: str) -> str | None:
        """See Replica.similar_file."""
        return os.path.join(self._state, FILE_NAME) if name == FILE_NAME and self._state else None

    def open(self) -> None:
        """Open the current state; damage is no error."""
        disk = self._around.disk
        try:
            state = current_state(self._directory, disk)
            marked = os.path.join(state, DAMAGED)
            if disk.exists(marked):
                raise CorruptDocuments(disk.read(marked).decode(errors="replace"), path=state)
            self._load(state)
        except CorruptDocuments as error:
            self.found_damage(error)

    def found_damage(self, error: CorruptDocuments, state: str = "") -> None:
        """From any thread, while locks are held. state: where, if that may not be the current state any more."""
        if self.damage is not None:
            return
        if state and state != self._state:
            log.warning("%s: it has been replaced since", error.message)
            return
        self.damage = error
        log.critical("%s: nothing of this replica is served until it is had from another one again", error.message)
        if self._state:
            try:
                self._around.disk.write(os.path.join(self._state, DAMAGED), error.message.encode())
            except (StorageError, *SHORTAGES) as failed:
                log.error("the damage could not be written down (it will be found again): %s", failed)

    def _load(self, state: str) -> None:
        """Open a state directory and make it the current one; on an error the former one stays."""
        before, self._state = self._state, state
        try:
            self.opened = OpenedState(state, self._around, partial(self.found_damage, state=state))
        except SHORTAGES:
            self._state = before
            raise
        self._around.changed.everything()

    def check(self, image: str) -> None:
        """See Replica.check_snapshot."""
        self._checked = ""
        verify_image(image, self._around.disk)
        path = os.path.join(image, FILE_NAME)
        try:
            verify_image_file(path)
        except CorruptDocuments as error:
            text = f"{error.message}. Nothing was installed; the sender's copy is bad"
            raise CorruptSnapshot(text, path=path) from error
        self._checked = image

    def check_once(self, image: str) -> None:
        """Unless it was the last one that was checked, or is in place already."""
        if not self._in_place(image) and self._checked != image:
            self.check(image)

    def _in_place(self, image: str) -> bool:
        return self._installed is not None and self._installed[0] == image

    def install(self, image: str) -> None:
        """See Replica.install_snapshot; the image was checked. Raises CorruptSnapshot, DiskFull or TooManyFiles if it
        may be repeated."""
        if not self._in_place(image):
            state = install_image(self._directory, image, self._around.disk, self._around.failpoint)
            self._installed = (image, state)
            self._checked = ""
        self.open_installed()

    def open_installed(self) -> None:
        """Go over to the state that an installation has put in place, if there is one. Raises DiskFull or TooManyFiles
        as long as it cannot be opened."""
        if self._installed is None:
            return
        _, state = self._installed
        self._around.disk.sync(self._directory)
        self._around.failpoint("install-swapped")
        before = self.opened
        self._load(state)
        self._installed = None
        self.damage = None
        self._in_flight.drain()  # searches on the old view still read its files
        try:
            try:
                if before is not None:
                    before.close()
            finally:
                self._left = state  # not before: `tidy`, which waits for nobody, deletes it
            self.remove_left()
        except SHORTAGES as error:
            log.warning("%s: the state before takes room until it can be deleted: %s", self._directory, error)

    def remove_left(self) -> None:
        """Delete what the last installation replaced."""
        state = self._left
        if state:
            remove_older(state, self._around.disk)
            if state == self._left:
                self._left = ""
