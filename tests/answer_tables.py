"""Random tables of answers: ties, missing classes, groups, unreadable images."""

from __future__ import annotations

import numpy as np

from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.calibration import losses_of


def random_answers(seed: int) -> Answers:
    """Up to 120 images of 2 to 8 classes; some classes without images or answers, many equal probabilities, groups at times."""
    random = np.random.default_rng(seed)
    classes, images = int(random.integers(2, 9)), int(random.integers(2, 121))
    used = random.choice(classes, int(random.integers(2, classes + 1)), replace=False)
    labels = random.choice(used, images)
    labels[:2] = used[:2]
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += random.uniform(0, 3)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = shares.astype(np.float32)
    if seed % 2:  # ties
        shares = np.round(shares * 8) / 8
        shares[shares.sum(axis=1) == 0] = 1 / classes
        shares = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    readable = random.random(images) < 0.9
    readable[:2] = True
    groups = None
    if seed % 3 == 0:
        groups = group_numbers([None if random.random() < 0.1 else f"g{random.integers(6)}" for _ in range(images)])
    predicted = shares.argmax(axis=1)
    return Answers(
        labels=labels[readable].astype(np.int64),
        predicted=predicted[readable],
        num_classes=classes,
        losses=losses_of(shares[np.arange(images), labels][readable]),
        confidence=shares.max(axis=1)[readable].astype(np.float64),
        probabilities=shares[readable],
        groups=None if groups is None else groups[readable],
    )
