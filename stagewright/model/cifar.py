"""ResNets for small images: a 3x3 stem with stride 1 and no max-pooling, so that the first stage sees full resolution.

The layout is that of He et al. for CIFAR (arXiv:1512.03385, section 4.2; pre-activation: arXiv:1603.05027) with the widths and
depths of the ImageNet ResNet-18, as is usual in comparisons: 11.17 M parameters for 10 classes, 11.22 M for 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stagewright.errors import ModelError


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _stochastic_depth(rate: float | None) -> nn.Module:
    """Returns torchvision's StochasticDepth, or Identity if ``rate`` is None."""
    if rate is None:  # without importing torchvision, which takes seconds
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, "row")


class _BasicBlock(nn.Module):
    """Residual block conv-norm-relu-conv-norm; ReLU follows the addition of the shortcut (arXiv:1512.03385, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _stochastic_depth(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.drop_path(residual) + self.shortcut(x))


class _PreActBlock(nn.Module):
    """Pre-activation block: norm-relu-conv twice, plus the shortcut (arXiv:1603.05027, figure 1b).

    A projection shortcut is applied to the input after its first norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _stochastic_depth(drop_path)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        activated = self.relu(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return self.drop_path(residual) + (x if self.shortcut is None else self.shortcut(activated))


class CifarResNet(nn.Module):
    """A ResNet for images of about 24 to 64 pixels: stages ``layer1``, ``layer2``, ... of widths w, 2w, 4w, ...

    ``preact`` selects pre-activation blocks, with one more norm after the last block. ``drop_path`` rises linearly from 0 in
    the first block to its value in the last. Accepts any image size; each stage after the first halves the resolution.
    """

    def __init__(
        self, num_classes: int, width: int, blocks: Sequence[int], drop_path: float = 0.0, preact: bool = False
    ) -> None:
        super().__init__()
        _check(width, blocks)
        block = _PreActBlock if preact else _BasicBlock
        stem = [_conv3x3(3, width)] if preact else [_conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem)
        self.stages: list[str] = []
        inputs, total, done = width, sum(blocks), 0
        for at, count in enumerate(blocks):
            outputs, layers = width * 2**at, []
            for place in range(count):
                stride = 2 if at and not place else 1
                rate = drop_path * done / max(1, total - 1) if drop_path else None
                layers.append(block(inputs, outputs, stride, rate))
                inputs, done = outputs, done + 1
            self.stages.append(f"layer{at + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.norm: nn.Module = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)) if preact else nn.Identity()
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, num_classes) logits."""
        x = self.stem(images)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.norm(x).mean(dim=(2, 3)))


def _check(width: Any, blocks: Any) -> None:
    listed = isinstance(blocks, Sequence) and not isinstance(blocks, str) and len(blocks) > 0
    if not listed or not all(isinstance(count, int) and count > 0 for count in blocks):
        raise ModelError(
            f"model.options.blocks is {blocks!r}",
            "blocks per stage, each at least 1, e.g. [2, 2, 2, 2]",
            "correct it, or leave it out for the usual network",
        )
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ModelError(
            f"model.options.width is {width!r}",
            "channels of the first stage, an integer of at least 1",
            "correct it, or leave it out for the usual width",
        )


def cifar_resnet18(
    num_classes: int, *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2), drop_path: float = 0.0
) -> CifarResNet:
    """Builds ResNet-18 with a CIFAR stem (11,173,962 parameters for 10 classes); ModelError for invalid width or blocks."""
    return CifarResNet(num_classes, width, blocks, drop_path)


def cifar_preact_resnet18(
    num_classes: int, *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2), drop_path: float = 0.0
) -> CifarResNet:
    """Builds a pre-activation ResNet-18 with a CIFAR stem; ModelError for invalid width or blocks."""
    return CifarResNet(num_classes, width, blocks, drop_path, preact=True)
