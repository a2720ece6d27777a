"""Rollbacks of the divergence guard: takes snapshots, restores them, and searches for images that cause a fault.

A rollback resumes at an earlier step with a remedy in the guard's state. Updates are pure functions of the step, so only the
remedy makes the repeated steps different. If the snapshot is not in memory, because this process began later, an older
checkpoint is restored and trained up to that step again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import train_specs
from stagewright.data.sources.verify import images_gone
from stagewright.engine.build import build_state
from stagewright.engine.state import TrainState
from stagewright.errors import CheckpointError, Diverged, ModelError, NotFinite
from stagewright.model.groups import modes_kept
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import RolledBack, Suspected
from stagewright.system.memory import num_bytes
from stagewright.system.surroundings import memory_advice
from stagewright.training.guard import KEPT_STATES, Fault, Guard
from stagewright.training.session import Session

_SHARE_OF_MEMORY = 0.1
"""Snapshots that need more than this share of a CUDA device's memory are stored in host memory."""


@dataclass
class Rollback:
    """Rolls a session back if its guard detects a fault; called by the loop between updates."""

    session: Session
    guard: Guard
    kept: list[dict[str, Any]] = field(default_factory=list)
    """Snapshots, the oldest first."""

    def take_snapshot(self) -> None:
        """Stores a snapshot of the present state if its step is a target for rollbacks."""
        state = self.session.state
        if not self.guard.is_snapshot_step(state.step) or (self.kept and self.kept[-1]["step"] == state.step):
            return
        self.kept.append(state.snapshot(_snapshot_device(state)))
        del self.kept[:-KEPT_STATES]

    def save(self) -> None:
        """Saves a checkpoint; it protects the checkpoints that a later rollback may need.

        These are the newest one that is old enough to go back to, and the best ones according to the snapshots.
        """
        session = self.session
        oldest = self.guard.oldest_restorable_step(session.state.step)
        before = [step for step in checkpoint.steps(session.run.checkpoints) if step <= oldest]
        bests = [kept["best"]["step"] for kept in self.kept if kept["best"]]
        session.save(protect={*before[-1:], *bests})

    def before_update(self, batch: Batch) -> None:
        """Does what is pending before the update of ``batch``: writes events of rollbacks and searches for bad images.

        Raises DataError if too many images cannot be read; the state is then that before the first update with missing images.
        """
        self._arrive(batch.step)
        stage = self.session.plan.stage_at(batch.step)
        if stage.fit == "optimum":
            return  # all its images were counted when their features were computed
        reading = self.session.reading
        if (gone := reading.check(batch.step, len(batch.bad_rows), stage.batch_size)) is not None:
            self._before_data_was_gone(gone)
            raise images_gone(self.session.manifest, batch.bad_rows, *reading.missing_images())

    def check(self) -> bool:
        """Checks the losses if a check is due; returns False after rolling back to an earlier step."""
        state, recorder = self.session.state, self.session.recorder
        if not self.guard.is_due(state.step):
            return True
        recorder.fetch()
        fault = self.guard.check(state.guard, state.step, recorder.recent)
        recorder.drop_checked(state.step)
        if fault is not None:
            self._go_back(fault)
        return fault is None

    def halve_micro_batch(self, update: int) -> None:
        """Goes back to before ``update``, which ran out of memory, and halves the micro-batch size.

        Raises ModelError if the micro-batch size is already 1.
        """
        session = self.session
        stage = session.plan.stage_at(update)
        used = -(-stage.batch_size // session.num_lanes(stage))
        if used <= 1:
            device, size = session.state.device, session.plan.stage_at(update).image_size
            allowed, remedy = memory_advice(str(device), size)
            raise ModelError(
                f"step {update + 1:,} needs more memory than {device} has, with one picture of {size} x {size} pixels at a time",
                allowed,
                f"{remedy}; then stagewright resume {session.run.root}",
            )
        if session.state.device.type == "cuda":
            torch.cuda.empty_cache()
        session.state.guard.micro_batch_size = used // 2
        back_to = max((kept["step"] for kept in self.kept if kept["step"] <= update), default=update)
        reason = f"out of memory with {used} pictures at a time"
        remedy = f"{used // 2} at a time from there on, batches as large as before"
        self._restore(Fault(update, back_to, "memory", reason), remedy)

    def _go_back(self, fault: Fault) -> None:
        session = self.session
        record, settings = session.state.guard, self.guard.settings
        stage = session.plan.stage_at(fault.update)
        lr = stage.hyper(fault.update).lr * record.lr_factor(fault.update)
        if record.rollbacks >= settings.rollbacks:
            self._save_sound_state(fault)
            times = f" after going back {record.rollbacks} times" if record.rollbacks else ""
            raise Diverged(
                f"training diverges{times}: step {fault.update + 1:,} (stage {stage.name!r}, LR {lr:.3g}): {fault.reason}",
                "finite losses that fall",
                "fork from the last checkpoint with a lower LR or with clipping: "
                f"stagewright resume {session.run.root} --set lr.peak=... --set optimizer.clip_norm=1.0",
            )
        record.rollbacks += 1
        if fault.kind == "not finite":
            record.bad_image_search = (
                fault.update,
                fault.back_to,
                fault.update if fault.culprit is None else fault.culprit,
            )
            remedy = "the pictures of that step are checked one by one"
        else:
            record.lr_reductions.append(self.guard.reduce_lr(fault.back_to))
            steps = settings.lr_factor_windows * settings.window
            remedy = f"the learning rate is multiplied by {settings.lr_factor:g} for {steps} steps"
        self._restore(fault, remedy)

    def handle_not_finite(self, error: NotFinite) -> None:
        """Rolls back after an evaluation with outputs that are not finite, because the last update has corrupted the weights.

        Raises Diverged if the allowed number of rollbacks is used up.
        """
        some = len(error.names) < error.total
        what = f"after it, {error.given}" if some else "after it, no output of the network is finite"
        state = self.session.state
        self._go_back(self.guard.fault_at_evaluation(state.guard, state.step, what))

    def _save_sound_state(self, fault: Fault) -> None:
        """Saves the state before ``fault`` if the newest checkpoint has corrupted weights.

        A run that ends here is resumed or forked from its newest checkpoint, so that one must be sound.
        """
        session = self.session
        saved = checkpoint.steps(session.run.checkpoints)
        corrupted = fault.culprit is not None and bool(saved) and saved[-1] > fault.culprit
        if session.ranks.tell(corrupted):
            session.state.rewind(self._state_before(fault.back_to))
            session.recorder.resume(session.state)
            self.save()

    def _restore(self, fault: Fault, remedy: str) -> None:
        """Restores the newest state at or before ``fault.back_to``.

        A process that began later may only have an older state, and trains up to that step again, by the same pure updates. The
        event is written when the step is reached (:meth:`before_update`), so that it is the same event however the run was
        interrupted.
        """
        session, state = self.session, self.session.state
        state.guard.restores += 1
        event = {
            "step": fault.back_to,
            "number": state.guard.restores,
            "at": fault.update + 1,
            "found": state.step,
            "fault": fault.kind,
            "reason": fault.reason,
            "remedy": remedy,
        }
        state.guard.pending.append(event)  # plain, since a checkpoint has it
        state.rewind(self._state_before(fault.back_to))
        self.kept = [kept for kept in self.kept if kept["step"] <= state.step]
        session.recorder.resume(state)
        session.recorder.log.skip_repeats()
        self.save()  # moves the checkpoints of later steps to rejected/

    def _before_data_was_gone(self, update: int) -> None:
        """Restores the state before ``update``, the first one with missing images; the loop saves it."""
        session, state = self.session, self.session.state
        if state.step > update:
            state.rewind(self._state_before(update))
            self.kept = [kept for kept in self.kept if kept["step"] <= state.step]
            session.recorder.resume(state)
            session.recorder.log.skip_repeats()

    def _arrive(self, step: int) -> None:
        """Does what is pending until ``step`` updates are finished: writes rollback events, searches for bad images."""
        session = self.session
        record = session.state.guard
        for event in [one for one in record.pending if one["step"] == step]:
            record.pending.remove(event)
            session.recorder.log.emit_rollback(RolledBack(**event))
        if record.bad_image_search is not None and record.bad_image_search[1] == step:
            self._find_bad_images(record.bad_image_search[0], record.bad_image_search[2])

    def _state_before(self, step: int) -> dict[str, Any]:
        """Returns the newest available state with at most ``step`` finished updates.

        It is a snapshot, else from a checkpoint, else the initial state.
        """
        for kept in reversed(self.kept):
            if kept["step"] <= step:
                return kept
        session = self.session
        folder = session.run.checkpoints
        place = session.ranks.bring(folder, _newest_sound(folder, step) if session.ranks.world.is_first else None)
        if place is not None:
            return checkpoint.load(place).tensors
        return build_state(session.plan, session.state.device)[0].content()

    def _find_bad_images(self, update: int, culprit: int) -> None:
        """Searches for images of ``update`` whose loss is not finite, and masks them in all later batches.

        If there are none, ``update`` and ``culprit``, the one before it that may have corrupted the weights, are left out, and
        the learning rate is reduced.
        """
        session = self.session
        record, at = session.state.guard, session.state.step
        batch = self._batch_of(update)
        record.bad_image_search = None  # nothing can interrupt the rest of this function
        guilty = self._has_bad_loss(batch)
        named = batch.rows[guilty]
        if len(named):
            record.masked = sorted({*record.masked, *named.tolist()})
            verdict = f"left out from now on, because its loss in step {update + 1:,} is not finite"
        else:
            record.left_out = sorted({*record.left_out, update, culprit})
            record.lr_reductions.append(self.guard.reduce_lr(at))
            settings = self.guard.settings
            steps = settings.lr_factor_windows * settings.window
            before = (
                f", and step {culprit + 1:,}, whose update may have corrupted the weights," if culprit != update else ""
            )
            verdict = (
                f"no single picture causes it, so step {update + 1:,}{before} {'are' if before else 'is'} left out and the "
                f"learning rate is multiplied by {settings.lr_factor:g} for {steps} steps; "
                f"the pictures of step {update + 1:,} were"
            )
            named = batch.rows
        paths = [session.manifest.paths[int(row)].as_py() for row in named]
        session.recorder.log.emit(
            Suspected(
                step=at,
                update=update + 1,
                rows=tuple(named.tolist()),
                paths=tuple(paths),
                verdict=verdict,
                guilty=bool(guilty.any()),
            )
        )

    def _batch_of(self, update: int) -> Batch:
        """Returns the batch of ``update`` as images, also if its stage trains on features: the model may be in another stage."""
        session = self.session
        specs = train_specs(session.plan, session.manifest, update)
        with session.batches.load([next(specs)]) as batches:
            return session.masked(next(batches))

    def _has_bad_loss(self, batch: Batch) -> NDArray[np.bool_]:
        """Which images of ``batch`` give a loss that is not finite, with the network as in evaluation, where none sees
        the others.

        None of a fit to the optimum, which reads no images: it leaves out those whose features are not finite.
        """
        if not batch.images.numel():
            return np.zeros(len(batch.rows), np.bool_)
        session, state, numerics = self.session, self.session.state, self.session.numerics
        with modes_kept(state.model), torch.no_grad(), numerics.autocast(state.device):
            state.model.eval()
            images = numerics.network_input(batch)
            size = session.micro_batch_size(session.plan.stage_at(batch.step))
            parts = [state.forward(images[start : start + size]) for start in range(0, len(images), size)]
        losses: Tensor = cross_entropy(torch.cat(parts).float(), batch.labels, reduction="none")
        return (~torch.isfinite(losses) & batch.valid).cpu().numpy()


def _newest_sound(folder: Path, step: int) -> int | None:
    """Returns the step of the newest undamaged checkpoint in ``folder`` of at most ``step`` finished updates, or None."""
    for earlier in reversed(checkpoint.steps(folder)):
        if earlier <= step:
            with suppress(CheckpointError):
                checkpoint.load(checkpoint.places(folder)[earlier])
                return earlier
    return None


def _snapshot_device(state: TrainState) -> torch.device:
    """Returns where snapshots are stored: the model's device if they need only a small share of its memory, else the host."""
    if state.device.type != "cuda":
        return state.device
    needed = KEPT_STATES * num_bytes(state.content())
    total = torch.cuda.get_device_properties(state.device).total_memory
    return state.device if needed < _SHARE_OF_MEMORY * total else torch.device("cpu")
