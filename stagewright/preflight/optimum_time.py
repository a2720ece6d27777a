"""Measures how long it takes to find the optimum of a head."""

from __future__ import annotations

import time
from collections.abc import Callable

from stagewright.plan.plan import StagePlan
from stagewright.training.session import Session


def optimum_seconds(session: Session, stage: StagePlan, synchronize: Callable[[], None]) -> float:
    """Returns the seconds to find the optimum from the features of all images of ``stage``, which the session has entered.

    The update is carried out with the session's images, and its time multiplied as if it had all of the stage.
    """
    with session.train_batches(stage.first_step) as batches:
        batch = session.with_cached_features(next(batches))
    if stage.augment.flip:
        session.features.of("train", stage, session.manifest, mirrored=True)
    began = time.perf_counter()
    session.update(stage, batch)
    synchronize()
    return (time.perf_counter() - began) * stage.num_images / len(batch.rows)
