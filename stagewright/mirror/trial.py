"""Tries what a mirror needs, before the first step: rights to put, get, list and delete, and conditional writes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

from stagewright.errors import StorageError
from stagewright.mirror.owner import version_of
from stagewright.storage.objects import explain, patiently

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

TRIAL = "trial-"
"""What the name of such an object begins with; a process that was killed may leave one."""
_RIGHTS = {
    "put": "the right to write objects (s3:PutObject)",
    "get": "the right to read objects (s3:GetObject)",
    "list": "the right to list the bucket (s3:ListBucket)",
    "delete": "the right to delete objects (s3:DeleteObject)",
}


def try_rights(store: ObjectStore, url: str, *, unfenced: bool = False) -> bool:
    """Writes, reads, lists and deletes a small object; returns whether conditional writes work.

    StorageError names the right that is missing, or says that conditional writes are, unless ``unfenced``. Where the store is
    busy or cannot be reached it is tried again for some 15 seconds.
    """
    name = f"{TRIAL}{secrets.token_hex(8)}"
    _attempt(url, "put", lambda: obstore.put(store, name, b"trial", use_multipart=False))
    _attempt(url, "get", lambda: obstore.get(store, name).bytes())
    if not _attempt(url, "list", lambda: any(one["path"] == name for part in obstore.list(store) for one in part)):
        raise StorageError(
            f"{url}: an object that was just written is not listed",
            "a store whose lists are up to date (S3 and its like, Google Cloud Storage, Azure)",
            "give another store",
        )
    conditional = _attempt(url, "put", lambda: _conditional_writes(store, name))
    _attempt(url, "delete", lambda: obstore.delete(store, name))
    if not conditional and not unfenced:
        raise StorageError(
            f"{url}: the store ignores the conditions of a write (If-Match, If-None-Match), or cannot carry them out",
            "a store with conditional writes, so that two processes never write to one mirror",
            "if you start only one process at a time on this mirror: --mirror-unfenced",
        )
    return conditional


def clock_ahead(store: ObjectStore, url: str) -> tuple[float, float]:
    """Returns (seconds that this machine's clock is ahead of the store's, negative: behind; by how many seconds that may be
    wrong), from the time that the store gives an object written now. StorageError if it cannot be written."""
    name = f"{TRIAL}{secrets.token_hex(8)}"
    began = time.time()
    _attempt(url, "put", lambda: obstore.put(store, name, b"clock", use_multipart=False))
    ended = time.time()
    there = _attempt(url, "get", lambda: obstore.head(store, name))["last_modified"].timestamp()
    _attempt(url, "delete", lambda: obstore.delete(store, name))
    whole = 0.0 if there % 1 else 0.5  # S3 gives whole seconds, rounded down
    return (began + ended) / 2 - there - whole, (ended - began) / 2 + whole


def _attempt(url: str, right: str, do: Callable[[], T]) -> T:
    """Returns ``do()``, or raises the StorageError that says which right is missing."""
    try:
        return patiently(do)
    except (BaseError, OSError) as error:
        doing = {"put": "writing", "get": "reading", "list": "listing", "delete": "deleting"}[right]
        raise explain(error, url, f"{doing} an object", _RIGHTS[right]) from error


def _conditional_writes(store: ObjectStore, name: str) -> bool:
    """Returns whether the store carries out both conditions, tried with the object ``name``, which exists. Some servers refuse
    conditions, others ignore them without a word."""
    try:
        try:
            obstore.put(store, name, b"again", mode="create")
            return False
        except AlreadyExistsError:
            pass
        first = version_of(obstore.get(store, name).meta)
        second = version_of(obstore.put(store, name, b"second", mode=first))
        if second == first:
            return False
        try:
            obstore.put(store, name, b"third", mode=first)
            return False
        except PreconditionError:
            return True
    except (NotImplementedError, NotSupportedError):
        return False
    except BaseError as error:
        if "501" in str(error) and "NotImplemented" in str(error):
            return False
        raise
