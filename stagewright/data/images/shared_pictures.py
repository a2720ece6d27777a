"""Opens the file in which the processes of a machine share the decoded images of a data set.

What decides the bytes decides the name of the file: content and sizes of all images in order, the largest size that is read, and
the decoder. Labels and splits do not matter: runs with other splits of the same images share them.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from stagewright.data.images import decode, depth, limits, stored
from stagewright.data.images.decode import FileImages
from stagewright.data.manifest import Manifest
from stagewright.storage.parquet import hash_column
from stagewright.storage.shared_file import SharedFile


def open_shared(images: FileImages, manifest: Manifest, num_bytes: int) -> SharedFile:
    """Returns the shared file for the decoded ``images`` of ``manifest``, of ``num_bytes`` bytes in all.

    StorageError if this machine cannot share it.
    """
    facts = [_decoder(), images.max_pixels, len(manifest), num_bytes]
    digest = hashlib.sha256(json.dumps(facts).encode())
    hash_column(digest, manifest.hashes)
    for column in (manifest.widths, manifest.heights):
        digest.update(np.ascontiguousarray(column, "<i4").tobytes())
    return SharedFile.open(f"pictures-{digest.hexdigest()[:32]}", len(manifest), num_bytes)


def load_scanned(images: FileImages, row: int, content: str) -> Image.Image:
    """Returns the image of ``row``, decoded, whose file has the hash ``content`` of the manifest.

    Raises OSError if it cannot be read, and if it has changed since it was scanned: other runs would get another image than they
    have scanned.
    """
    data = images.read(row)
    if hashlib.blake2b(data, digest_size=16).hexdigest() != content:
        raise OSError("the picture has changed since it was scanned")
    return decode.decode(data, images.max_pixels)


@cache
def _decoder() -> list[object]:
    """Returns the versions of all that decodes: Pillow, its libraries, and the code of this package."""
    versions = [PIL.__version__, *(f"{name} {features.version(name)}" for name in sorted(features.get_supported()))]
    code = hashlib.sha256()
    for module in (decode, depth, limits, stored):
        code.update(Path(str(module.__file__)).read_bytes())
    return [*versions, code.hexdigest()]
