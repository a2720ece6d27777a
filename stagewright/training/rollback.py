"""The rollback of the divergence guard: states to go back to, going back, and finding the images that are to blame.

Going back is resuming at an earlier step with a remedy on record: the updates from there on are the same pure functions
of the step, so that nothing but the remedy differs. A state that is not in memory any more (this process began later)
is reached from an older checkpoint, by training up to it once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
from stagewright.training.guard import KEPT_STATES, Fault, Guard
from stagewright.training.session import Session

_SHARE_OF_MEMORY = 0.1
"""Snapshots that would take more of a CUDA device's memory lie in the host's."""


@dataclass
class Rollback:
    """What a session goes back to where its guard finds a fault. The loop asks it, between updates."""

    session: Session
    guard: Guard
    kept: list[dict[str, Any]] = field(default_factory=list)
    """Snapshots, the oldest first."""

    def take_snapshot(self) -> None:
        """Keeps the present state, if it is one to go back to."""
        state = self.session.state
        if not self.guard.is_snapshot_step(state.step) or (self.kept and self.kept[-1]["step"] == state.step):
            return
        self.kept.append(state.snapshot(_home(state)))
        del self.kept[:-KEPT_STATES]

    def save(self) -> None:
        """Saves the session. What it may go back to, and the best weights as they were there, are kept as long as the state."""
        session = self.session
        oldest = self.guard.oldest_restorable_step(session.state.step)
        before = [step for step in checkpoint.steps(session.run.checkpoints) if step <= oldest]
        bests = [kept["best"]["step"] for kept in self.kept if kept["best"]]
        session.save(protect={*before[-1:], *bests})

    def before_update(self, batch: Batch) -> None:
        """What is due before the update of ``batch``: the event of a rollback, a look at images that are suspected. DataError
        where too many images cannot be read, with the state back before the first update that lacked some."""
        self._arrive(batch.step)
        reading = self.session.reading
        if (gone := reading.check(batch.step, len(batch.bad_rows), len(batch.rows))) is not None:
            self._before_data_was_gone(gone)
            raise images_gone(self.session.manifest, batch.bad_rows, *reading.missing_images())

    def check(self) -> bool:
        """Checks the losses where it is time; False where it has gone back to an earlier step."""
        state, recorder = self.session.state, self.session.recorder
        if not self.guard.is_due(state.step):
            return True
        recorder.fetch()
        fault = self.guard.check(state.guard, state.step, recorder.recent)
        recorder.looked(state.step)
        if fault is not None:
            self._go_back(fault)
        return fault is None

    def halve_micro_batch(self, update: int) -> None:
        """Goes back to before ``update``, which did not fit into memory, and takes half as many images at a time."""
        session = self.session
        used = session.micro_batch_size(session.plan.stage_at(update))
        if used <= 1:
            raise ModelError(
                f"step {update + 1:,} needs more memory than {session.state.device} has, with one picture at a time",
                "a smaller network or smaller pictures",
                f"stagewright resume {session.run.root} --set image_size=... (a fork), or another device",
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
            self._leave_sound(fault)
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
            remedy = "the pictures of that step are looked at one by one"
        else:
            record.lr_reductions.append(self.guard.reduce_lr(fault.back_to))
            remedy = f"the learning rate times {settings.lr_factor:g} for {settings.lr_factor_windows * settings.window} steps"
        self._restore(fault, remedy)

    def spoilt(self, error: NotFinite) -> None:
        """Goes back where an evaluation found that the last update has spoilt the weights; Diverged where that was tried
        often enough."""
        what = (
            f"behind it, {error.given}" if len(error.names) < error.total else "behind it no answer is a finite number"
        )
        state = self.session.state
        self._go_back(self.guard.spoilt(state.guard, state.step, what))

    def _leave_sound(self, fault: Fault) -> None:
        """Makes the newest checkpoint one from before ``fault``, where the disk has one of spoilt weights: a run that ends here
        is gone on with, or forked, from its newest checkpoint."""
        session = self.session
        saved = checkpoint.steps(session.run.checkpoints)
        if fault.culprit is not None and saved and saved[-1] > fault.culprit:
            session.state.rewind(self._state_before(fault.back_to))
            session.recorder.resume(session.state)
            self.save()

    def _restore(self, fault: Fault, remedy: str) -> None:
        """Goes on from the newest state at or before the one that ``fault`` names.

        A process that began later has an older one: it trains up to that step once more, by the same pure updates. The event
        waits until then (:meth:`before_update`), so that it is the same event however the run was interrupted.
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
        self.save()  # sets aside the checkpoints of what is given up

    def _before_data_was_gone(self, update: int) -> None:
        """Makes the state that of before ``update``, from which on images were missing; it is saved by the loop."""
        session, state = self.session, self.session.state
        if state.step > update:
            state.rewind(self._state_before(update))
            self.kept = [kept for kept in self.kept if kept["step"] <= state.step]
            session.recorder.resume(state)
            session.recorder.log.skip_repeats()

    def _arrive(self, step: int) -> None:
        """What waits for ``step`` finished updates: the event of a rollback, and a look at images."""
        session = self.session
        record = session.state.guard
        for event in [one for one in record.pending if one["step"] == step]:
            record.pending.remove(event)
            session.recorder.log.emit_rollback(RolledBack(**event))
        if record.bad_image_search is not None and record.bad_image_search[1] == step:
            self._find_bad_images(record.bad_image_search[0], record.bad_image_search[2])

    def _state_before(self, step: int) -> dict[str, Any]:
        """The newest state of at most ``step`` finished updates that there is: kept, saved, or the very first."""
        for kept in reversed(self.kept):
            if kept["step"] <= step:
                return kept
        session = self.session
        for earlier in reversed(checkpoint.steps(session.run.checkpoints)):
            if earlier <= step:
                try:
                    return checkpoint.load(session.run.checkpoints / checkpoint.name_of(earlier)).tensors
                except CheckpointError:
                    continue
        return build_state(session.plan, session.state.device)[0].content()

    def _find_bad_images(self, update: int, culprit: int) -> None:
        """Looks for the images of ``update`` that give no finite loss, and writes the remedy into the record. Where none does,
        it leaves out the update and ``culprit``, the one before it that may have spoilt the weights."""
        session = self.session
        record, at = session.state.guard, session.state.step
        batch = self._batch_of(update)
        record.bad_image_search = None  # from here on nothing waits, so that no stop can come between
        guilty = self._not_finite(batch)
        named = batch.rows[guilty]
        if len(named):
            record.masked = sorted({*record.masked, *named.tolist()})
            verdict = f"left out from here on, since what the network makes of it in step {update + 1:,} is not finite"
        else:
            record.left_out = sorted({*record.left_out, update, culprit})
            record.lr_reductions.append(self.guard.reduce_lr(at))
            settings = self.guard.settings
            steps = settings.lr_factor_windows * settings.window
            before = (
                f", and step {culprit + 1:,}, whose update may have spoilt the weights," if culprit != update else ""
            )
            verdict = (
                f"no single picture is to blame, so step {update + 1:,}{before} {'are' if before else 'is'} left out and the "
                f"learning rate is times {settings.lr_factor:g} for {steps} steps; the pictures of step {update + 1:,} were"
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
        """The batch of ``update`` as images, also where its stage trains on features: the model may be in another stage."""
        session = self.session
        specs = train_specs(session.plan, session.manifest, update)
        with session.batches.load([next(specs)]) as batches:
            return session.masked(next(batches))

    def _not_finite(self, batch: Batch) -> NDArray[np.bool_]:
        """Which images of ``batch`` give a loss that is not finite, with the network as in evaluation, where none sees
        the others."""
        session, state, numerics = self.session, self.session.state, self.session.numerics
        with modes_kept(state.model), torch.no_grad(), numerics.autocast(state.device):
            state.model.eval()
            images = numerics.network_input(batch)
            size = session.micro_batch_size(session.plan.stage_at(batch.step))
            parts = [state.forward(images[start : start + size]) for start in range(0, len(images), size)]
        losses: Tensor = cross_entropy(torch.cat(parts).float(), batch.labels, reduction="none")
        return (~torch.isfinite(losses) & batch.valid).cpu().numpy()


def _home(state: TrainState) -> torch.device:
    """Where snapshots lie: on the model's device, where they take little of it."""
    if state.device.type != "cuda":
        return state.device
    needed = KEPT_STATES * num_bytes(state.content())
    total = torch.cuda.get_device_properties(state.device).total_memory
    return state.device if needed < _SHARE_OF_MEMORY * total else torch.device("cpu")
