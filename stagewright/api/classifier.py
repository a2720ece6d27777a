"""What an evaluation needs of a model, be it a Bundle or published weights of a library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stagewright.augment.geometry import eval_geometry
from stagewright.bundle.bundle import Bundle
from stagewright.bundle.network import Network
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.images.decode import Images
from stagewright.data.images.resize_crop import ResizeCrop, ViewedImages
from stagewright.data.manifest import Manifest
from stagewright.engine.numerics import Numerics
from stagewright.errors import ModelError
from stagewright.model.published import Numbers, Published, matching_wnids, published
from stagewright.model.weights import load_weights
from stagewright.model.zoo import create_model
from stagewright.recipe.recipe import Evaluation
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network with the names of its outputs and the view that its images need."""

    classes: tuple[str, ...]
    model: nn.Module
    """In eval mode, on its device."""
    network: Network
    mean: Numbers
    std: Numbers
    view: ResizeCrop | None
    """The view of published weights; None: that of ``bundle``."""
    bundle: Bundle | None
    """Where it is from; None for published weights."""
    weights: Published | None = None
    notes: tuple[str, ...] = ()
    """What was loaded, and how images are seen."""

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Classifier:
        """Returns ``bundle`` as a classifier."""
        seen = bundle.preprocessing
        return cls(bundle.classes, bundle.model, bundle.network, seen.mean, seen.std, None, bundle)

    @property
    def shown(self) -> tuple[str, ...]:
        """The classes by the names that people see."""
        return self.classes if self.bundle is None else self.bundle.spec.shown

    @property
    def run(self) -> Path | None:
        """The directory of the run that it is from, if it lies in one."""
        return self.bundle.folder.parent if self.bundle is not None else None

    @property
    def numerics(self) -> Numerics:
        """Its normalisation; outputs in float32."""
        return Numerics(self.mean, self.std, "fp32", True)

    def named(self, theirs: tuple[str, ...]) -> dict[str, str | None]:
        """Returns the class for those of ``theirs``, names of DATA, that are ImageNet's in another spelling, or display names of
        a Bundle."""
        if self.weights is not None:
            return dict(matching_wnids(theirs, self.weights))
        shown = dict(zip(self.shown, self.classes, strict=True))
        return {name: shown[name] for name in theirs if name in shown and name not in self.classes}

    def seeing(self, images: Images) -> Images:
        """Returns ``images`` as its view needs them."""
        return images if self.view is None else ViewedImages(images, self.view)

    def specs(self, manifest: Manifest, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Iterator[BatchSpec]:
        """Yields the batches of ``rows`` (N,) with ``labels`` (N,), for images from :meth:`seeing`."""
        view = None if self.bundle is None else self.bundle.preprocessing
        seen = Evaluation() if view is None else Evaluation(crop=view.crop, fit=view.fit)
        size, filter_ = (
            (view.image_size, view.interpolation) if view is not None else (self.network.image_size, "bilinear")
        )
        for at in range(0, len(rows), _BATCH):
            chosen = rows[at : at + _BATCH]
            geometry = eval_geometry(seen, manifest.widths[chosen], manifest.heights[chosen])
            yield BatchSpec(at // _BATCH, chosen, labels[at : at + _BATCH], geometry, size, filter_)


def load_published(weights: str | Path, model: str | None = None, *, device: str = "auto") -> Classifier:
    """Returns published weights for ImageNet with the view that they were measured with.

    ``weights`` is a name of torchvision or timm, perhaps with a tag (``resnet50``, ``resnet50.IMAGENET1K_V1``,
    ``timm:resnet50.a1_in1k``), or ``default``, or a file with such weights; for the latter two ``model`` is the name, whose tag
    says which view belongs to the file. ModelError for names without such weights, and for a file that does not fit.
    """
    path = user_path(weights)
    from_file = path.suffix.lower() in (".pth", ".pt", ".bin", ".safetensors") or path.exists()
    name = model if from_file or str(weights) == "default" else str(weights)
    if name is None or (model is not None and name != model):
        raise ModelError(
            f"--weights {weights} {'without --model' if name is None else f'with --model {model}'}",
            "a name alone, such as --weights resnet50; or a file, or default, together with --model NAME",
            "add --model, e.g. --model mobilenet_v2.IMAGENET1K_V1" if name is None else "leave --model out",
        )
    known = published(name)
    count = len(known.wnids)
    network = create_model(name, count, image_size=known.size, pretrained=not from_file)
    notes = [f"{known.name}" if not from_file else f"{weights} in {name}, seen as {known.name} is"]
    if from_file:
        report = load_weights(network, path, count)
        if report.skipped or report.missing:
            first = [f"{tensor}: {why}" for tensor, why in report.skipped] + [
                f"{one}: not there" for one in report.missing
            ]
            raise ModelError(
                f"{weights} does not fill {name} with its {count:,} classes of ImageNet: {first[0]}",
                "all weights of the network, its head too",
                "name the network that the file is for with --model",
            )
    network.to(choose_device(device)).eval()
    fill = tuple(round(255 * value) for value in known.mean) if known.mode == "border" else (0, 0, 0)
    view = ResizeCrop(known.resize, known.size, known.mode, known.interpolation, fill)  # pyright: ignore[reportArgumentType]
    notes.append(f"view: {view}")
    return Classifier(
        known.class_names(),
        network,
        Network(network, known.size, fold=True),
        known.mean,
        known.std,
        view,
        None,
        known,
        tuple(notes),
    )
