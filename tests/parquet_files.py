"""Parquet files with images, as the library datasets writes them, on the disk and in the bucket of the test's object store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from object_server import ObjectServer


def write_parquet(
    files: Sequence[Path],
    target: Path,
    classes: Sequence[str],
    *,
    labels: Sequence[int] | None = None,
    rows: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes the images ``files`` to ``target``, with ``rows`` rows in a row group, and with further ``columns`` of text.

    The class of each is the name of its folder, or ``labels``.
    """
    import datasets

    more = dict(columns or {})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    features |= {name: datasets.Value("string") for name in more}
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    own = [classes.index(file.parent.name) for file in files] if labels is None else list(labels)
    table = {"image": images, "label": own, **more}
    target.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(str(target), batch_size=rows)
    return target


def parquet_ranges(server: ObjectServer) -> Counter[str]:
    """How often each range of a Parquet file was asked for."""
    asked = [one for one in server.requests() if one["method"] == "GET" and ".parquet" in one["path"]]
    return Counter(f"{one['path']} {one['range']}" for one in asked)
