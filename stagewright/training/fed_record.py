"""Records what the network of a stage is fed first, for the report: a few images of its first step, augmented and mixed."""

from __future__ import annotations

import base64
from typing import Any

from stagewright.data.images.decode import Images
from stagewright.data.images.encode import encoded
from stagewright.data.manifest import Manifest
from stagewright.engine.fed import fed_at, levels
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import make_folder, write_json

_IMAGES, _SIDE = 8, 112


def record_fed(run: RunDir, plan: Plan, manifest: Manifest, images: Images, stage: StagePlan) -> None:
    """Writes ``fed/INDEX.json`` of ``run``, with the first images of the first step of ``stage``, unless it is there.

    It is computed from the plan and not taken from the loop, so that it is the same wherever a run was interrupted, and also
    there where features are stored. StorageError if it cannot be written.
    """
    target = run.fed / f"{stage.index}.json"
    if target.exists():
        return
    content = _content(plan, manifest, images, stage)
    make_folder(run.fed)
    write_json(target, content)


def _content(plan: Plan, manifest: Manifest, images: Images, stage: StagePlan) -> dict[str, Any]:
    fed = fed_at(plan, manifest, images, stage.first_step, first=_IMAGES)
    mixed, count = fed.mixed, min(_IMAGES, len(fed.rows))
    pixels = levels(mixed.images[:count], fed.numerics)
    readable = (at for at in range(count) if mixed.weight[at] > 0)
    return {
        "step": fed.step,
        "kind": fed.draw.kind,
        "share": mixed.lam,
        "images": [
            {
                "path": manifest.paths[int(fed.rows[at])].as_py(),
                "label": int(mixed.labels_a[at]),
                "other": int(mixed.labels_b[at]),
                "file": base64.b64encode(encoded(pixels[at], _SIDE)).decode(),
            }
            for at in readable
        ],
    }
