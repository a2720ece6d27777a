"""Tests of a training on a pack in an object store: the same weights as on the disk, and a changed part is refused by name."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest
from safetensors.numpy import load_file

import stagewright as sw
from stagewright.data.pack.build import pack
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store


def test_train_and_resume(picture_folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    folder, url = tmp_path / "photos.pack", f"{bucket}/photos.pack"
    for out in (folder, url):
        pack(str(picture_folder), out, Data(), size=16, part_bytes=8_000)
    recipe = ("model.options={width: 4}", "image_size=16", "batch_size=8", "epochs=6st", "data.val=0.2")
    quiet = sw.Execution(device="cpu", workers=1, pages=False, quiet=True)
    runs = [
        sw.train(source, "quick", overrides=recipe, out=tmp_path / name, execution=quiet, say=lambda text: None)
        for name, source in (("here", str(folder)), ("there", url))
    ]
    here, there = (load_file(run.path / "model" / "weights.safetensors") for run in runs)
    assert here.keys() == there.keys() and all((here[name] == there[name]).all() for name in here)
    store = open_store(url)
    data = bytearray(bytes(obstore.get(store, "part-00001.arrow").bytes()))
    data[-20] ^= 1
    obstore.put(store, "part-00001.arrow", bytes(data))
    with pytest.raises(DataError) as error:
        sw.resume(runs[1].path, overrides=["epochs=9st"], execution=quiet, say=lambda text: None)
    assert error.value.given.startswith(f"part-00001.arrow of {url} has changed (ETag ")
