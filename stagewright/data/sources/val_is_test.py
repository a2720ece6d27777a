"""Makes the validation part that DATA gives the test part (``data.val_is_test``), for sets that are published as train and val.

Weights are chosen on validation images, so their accuracy is too high; such a set needs a validation part of its own, from its
training images, and its published one stays closed until the end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stagewright.data.partition import TEST, VAL
from stagewright.data.sources.folders import Listing
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def with_val_as_test(source: str, listing: Listing, settings: Data) -> Listing:
    """Returns ``listing`` with its val part as test if ``settings`` ask for it; DataError if it has none, or has a test part."""
    if not settings.val_is_test:
        return listing
    has_val, has_test = ((listing.parts == part).any() for part in (VAL, TEST))
    if not has_val or has_test:
        have = "has a test part already" if has_test else "has no validation part"
        raise DataError(
            f"data.val_is_test=true, and {source!r} {have}",
            "DATA with train and val, and no test",
            "leave data.val_is_test out",
        )
    parts = np.where(listing.parts == VAL, TEST, listing.parts).astype(np.int8)
    return replace(
        listing, parts=parts, notes=(*listing.notes, "the val part of DATA is the test part (data.val_is_test)")
    )
