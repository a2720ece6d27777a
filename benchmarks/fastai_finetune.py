"""One run of fastai's ``fine_tune`` on a table with the columns path, label and split, for rivals.py.

It needs an environment with fastai. The calls are those of fastai's own first example, with the same weights, size and parts
that stagewright gets: ``Resize`` then ``aug_transforms``, batch 64, the suggested learning rate as it stands in fine_tune.

    python benchmarks/fastai_finetune.py TABLE WEIGHTS SEED SIZE EPOCHS OUT.json
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import pandas as pd
    import torch
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import ColReader, ColSplitter
    from fastai.metrics import accuracy
    from fastai.torch_core import set_seed
    from fastai.vision.augment import Resize, aug_transforms
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock
    from fastai.vision.learner import model_meta, vision_learner
    from torchvision.models import mobilenet_v2

    table, source, seed, size, epochs, out = sys.argv[1:]
    frame = pd.read_csv(table, dtype=str)
    learning, test = frame[frame.split != "test"].copy(), frame[frame.split == "test"]
    learning["is_valid"] = learning.split == "val"
    set_seed(int(seed), reproducible=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path", pref=Path(table).parent),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
        item_tfms=Resize(int(size)),
        batch_tfms=aug_transforms(),
    )
    loaders = block.dataloaders(learning, bs=64, num_workers=2)

    def arch(weights: object = None) -> torch.nn.Module:
        network = mobilenet_v2()
        network.load_state_dict(torch.load(source, weights_only=True))
        return network

    model_meta[arch] = {
        "cut": -1,
        "split": lambda m: [list(m[0].parameters()), list(m[1].parameters())],
        "stats": imagenet_stats,
    }
    learner = vision_learner(loaders, arch, metrics=accuracy)
    learner.fine_tune(int(epochs))
    paths = test.path.tolist()
    shares, _ = learner.get_preds(dl=loaders.test_dl(test))
    names = [loaders.vocab[at] for at in shares.argmax(1).tolist()]
    Path(out).write_text(json.dumps(dict(zip(paths, names, strict=True))))


if __name__ == "__main__":
    main()
