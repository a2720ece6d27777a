"""What of a listing cannot be used, and why: the account, the files that cannot be read, and the sentences on both."""

from __future__ import annotations

from collections.abc import Iterable

from stagewright.data.account import Account, Omission, by_reason, not_a_picture
from stagewright.data.images.limits import ABOVE_MAX_PIXELS
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.scan import Scan
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.text import counted, some


def account_of(listing: Listing, scanned: Scan) -> Account:
    """Returns what became of the files and rows of ``listing``; ``scanned`` is the scan of its files."""
    others = [
        (path, not_a_picture(path)) for path in (listing.paths[row].as_py() for row in sorted(scanned.not_images))
    ]
    excluded = [(item.path, item.reason) for item in listing.excluded]
    left_out: list[Omission] = [*listing.left_out, *by_reason(excluded), *by_reason(others)]
    return Account(
        read=len(listing.paths) - len(scanned.reasons),
        left_out=tuple(sorted(left_out, key=lambda one: -one.count)),
        unreadable=by_reason((item.path, item.reason) for item in _unreadable(listing, scanned)),
    )


def _unreadable(listing: Listing, scanned: Scan) -> list[Excluded]:
    rows = sorted({*scanned.reasons} - scanned.not_images)
    return [Excluded(listing.paths[row].as_py(), scanned.reasons[row]) for row in rows]


def exclude_unreadable(listing: Listing, scanned: Scan, settings: Data) -> list[Excluded]:
    """Returns the files that the scan could not read; DataError if ``settings.bad_images`` forbids them."""
    bad = _unreadable(listing, scanned)
    larger = _above_max_pixels(bad)
    if bad and settings.bad_images == "fail":
        examples = some((f"{item.path} ({item.reason})" for item in bad), 10)
        raise DataError(
            f"{counted(len(bad), 'picture')} cannot be read: {examples}",
            "pictures that Pillow reads, since data.bad_images is fail",
            ("read large ones too: --set data.max_pixels=N; or " if larger else "")
            + "repair or remove them, or leave them out: --set data.bad_images=exclude",
        )
    return [Excluded(listing.paths[row].as_py(), scanned.reasons[row]) for row in sorted(scanned.reasons)]


def _above_max_pixels(bad: Iterable[Excluded]) -> int:
    return sum(ABOVE_MAX_PIXELS in item.reason for item in bad)


def size_notes(bad: Iterable[Excluded]) -> list[str]:
    """Returns a note on the images above ``data.max_pixels``, if there are any."""
    larger = _above_max_pixels(bad)
    if not larger:
        return []
    return [
        f"{counted(larger, 'picture')} above data.max_pixels: --set data.max_pixels=N reads them, at 12 bytes of memory "
        "per pixel; training is faster with a pack of them (stagewright data pack, with the same --set)"
    ]


def nothing_readable(source: str, listing: Listing, scanned: Scan) -> DataError:
    """The error for a listing without a readable image."""
    account = account_of(listing, scanned)
    if account.unreadable:
        examples = some((f"{one.example} ({one.reason})" for one in account.unreadable), 3)
        return DataError(
            f"none of the {counted(len(listing.paths), 'file')} of {source!r} can be read as a picture: {examples}",
            "pictures in any format that Pillow reads",
            "open one of them with another program; if it is damaged there too, copy the data again",
        )
    left_out = "".join(f"; {line}" for line in account.lines())
    return DataError(
        f"there are no pictures in {source!r}{left_out}",
        "class folders with pictures in them",
        "put the pictures of each class into a folder named after it",
    )
