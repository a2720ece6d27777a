"""Where the initial weights of a network come from: facts that the code that loads them states, for reports and files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class RunOrigin:
    """The run of stagewright that weights were trained in, as its model.json or its checkpoint says."""

    folder: str
    """The directory of the run, or the Bundle where it was copied out of its run."""
    plan_digest: str
    step: int
    """Number of finished updates."""
    weights: str
    """``raw``, ``ema``, ``swa``, ``head`` or a mixture, as in summary.json."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of initial weights."""

    kind: Literal["random", "function", "library", "file", "run"]
    """``random``: drawn from the recipe's seed. ``function``: as a user's function makes the network. ``library``: an entry of
    torchvision or timm. ``file``: a weights file. ``run``: the model or a checkpoint of another run."""
    name: str = ""
    """The entry of the library with its tag (``swin_t.IMAGENET1K_V1``), the function, or the path as it was given."""
    library: str = ""
    """``torchvision`` or ``timm``; empty for other kinds."""
    trained_on: str = ""
    """``ImageNet`` for an entry of a library with one of ImageNet's label sets; empty where that is not known."""
    sha256: str = ""
    """SHA-256 of the weights file, hexadecimal; empty for other kinds."""
    run: RunOrigin | None = None

    @property
    def source(self) -> str:
        """The source as the log names it: ``torchvision:swin_t.IMAGENET1K_V1``, or the path as it was given."""
        return f"{self.library}:{self.name}" if self.library else self.name

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without the fields that are empty."""
        return {name: value for name, value in asdict(self).items() if value}
