"""The fields that tests of small runs have in common: a network of width 4 on pictures of 16 px, a few steps of 8."""

from __future__ import annotations

from typing import Any

NETWORK: dict[str, Any] = {
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 16,
    "batch_size": 8,
    "lr": {"schedule": "constant", "peak": 0.02},
    "augment": {"crop": "none"},
}
