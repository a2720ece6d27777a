"""Decodes several images of any source at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import Images, decode


def load_rows(images: Images, rows: NDArray[np.int64]) -> list[Image.Image | Exception]:
    """Returns the upright RGB images of ``rows`` (n,), and the error of each that cannot be read.

    Images that lie side by side in an object store are fetched together.
    """
    stored = images.stored(rows)
    found: list[Image.Image | Exception] = []
    for at in range(len(stored)):
        try:
            if at in stored.failures:
                raise stored.failures[at]
            if stored.sizes is None:
                found.append(decode(stored.data(at), stored.max_pixels))
            else:
                width, height = stored.sizes[at].tolist()
                found.append(Image.frombytes("RGB", (width, height), stored.data(at)))
        except Exception as error:  # as an answer: unreadable pictures do not stop a prediction
            if isinstance(error, MemoryError):
                raise
            found.append(error)
    return found
