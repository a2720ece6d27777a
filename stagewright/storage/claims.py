"""Pieces of work that any number of processes share through an object store, without knowing each other.

Who wants a piece creates its claim, which only one can (If-None-Match). A claim is a lease: its owner renews it while it works,
and who finds one that has not been renewed takes it over (If-Match: again only one can). The result is created once; what is
found to exist already is not written again. Times are the store's: what its clock shows is measured by a write at the start, so
the clocks of the hosts need not agree.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagewright.errors import StorageError
from stagewright.storage.object_files import Changed, list_objects, repeated
from stagewright.storage.objects import open_store

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

CLAIMS = "claims"
"""Prefix of the claims, beside the results."""


@dataclass
class Claim:
    """A piece of work that this process has claimed."""

    name: str
    etag: str
    renewed: float
    """``time.monotonic()`` of the last renewal."""


class Claims:
    """The claims of this process below ``url``, each for ``lease`` seconds.

    StorageError if the store cannot be written, or does not keep conditions of writes.
    """

    def __init__(self, url: str, lease: float) -> None:
        self.url, self.lease, self.store = url, lease, open_store(url)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        trial, began = f"{CLAIMS}/trial-{self.owner}", time.time()
        self._put(trial, b"1", "create")
        try:
            if self.create(trial, b"2"):
                raise StorageError(
                    f"{url}: the store ignores the conditions of writes, so that two processes could take the same work",
                    "a store with conditional writes (S3, Google Cloud Storage, Azure, MinIO, R2)",
                    "choose another store, or predict in one process without --claim",
                )
            found = self._state(trial)
            self._ahead = 0.0 if found is None else found[1] - began
        finally:
            self._delete(trial)

    def now(self) -> float:
        """The store's time in seconds."""
        return time.time() + self._ahead

    def create(self, name: str, data: bytes) -> bool:
        """Writes the object ``name`` if there is none. Returns whether this process wrote it."""
        try:
            self._put(name, data, "create")
        except Changed:
            return False
        return True

    def done(self) -> set[str]:
        """Returns the names of all objects beside the claims."""
        return {name for name in list_objects(self.store, self.url) if not name.startswith(f"{CLAIMS}/")}

    def take(self, name: str) -> Claim | None:
        """Claims the piece ``name``: a free one, or one whose lease has ended. None if another process has it."""
        place = _claim_of(name)
        try:
            return Claim(name, self._put(place, self._content(), "create"), time.monotonic())
        except Changed:
            found = self._state(place)
        if found is None or self.now() - found[1] < self.lease:
            return None
        try:
            return Claim(name, self._put(place, self._content(), {"e_tag": found[0]}), time.monotonic())
        except (Changed, FileNotFoundError):
            return None

    def renew(self, claim: Claim) -> bool:
        """Renews the lease of ``claim`` if a third of it has passed. Returns False if another process has taken it over."""
        if time.monotonic() - claim.renewed < self.lease / 3:
            return True
        try:
            claim.etag = self._put(_claim_of(claim.name), self._content(), {"e_tag": claim.etag})
        except (Changed, FileNotFoundError):
            return False
        claim.renewed = time.monotonic()
        return True

    def release(self, claim: Claim) -> None:
        """Gives ``claim`` back, so that others need not wait for the end of its lease."""
        self._delete(_claim_of(claim.name))

    def _content(self) -> bytes:
        return json.dumps({"owner": self.owner, "at": time.time()}).encode()

    def _put(self, name: str, data: bytes, mode: PutMode | UpdateVersion) -> str:
        """Writes an object and returns its ETag. An answer that was lost must not make the own write look like another's."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> str:
            try:
                return obstore.put(self.store, name, data, mode=mode, use_multipart=False)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                there = obstore.get(self.store, name)
                if bytes(there.bytes()) == data and self.owner.encode() in data:
                    return there.meta["e_tag"] or ""
                raise

        return repeated(put, f"{self.url}/{name}", "writing it", "s3:PutObject")

    def _state(self, name: str) -> tuple[str, float] | None:
        """Returns ETag and time of the last change (of the store's clock, in seconds) of an object; None if there is none."""
        import obstore

        try:
            found = repeated(lambda: obstore.head(self.store, name), f"{self.url}/{name}", "reading it", "s3:GetObject")
        except FileNotFoundError:
            return None
        return found["e_tag"] or "", found["last_modified"].timestamp()

    def _delete(self, name: str) -> None:
        import obstore

        try:
            repeated(lambda: obstore.delete(self.store, name), f"{self.url}/{name}", "deleting it", "s3:DeleteObject")
        except FileNotFoundError:
            return


def _claim_of(name: str) -> str:
    """Returns the name of the claim of a piece, which must not look like a result to who reads all files of a kind."""
    return f"{CLAIMS}/{name}.claim"
