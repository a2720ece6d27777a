"""Loads weights of a file or an earlier run into a model as far as they fit, and reports what was loaded and what was not.

Tensors are matched by name. If the source has class names, the rows of its head are matched by class name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stagewright.errors import ModelError
from stagewright.model.fit import COUNTER, require_fit, shape
from stagewright.model.heads import head_tensors, narrow_head
from stagewright.model.origin import Origin
from stagewright.model.weight_file import State, locate, read_tensors

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")  # DistributedDataParallel, AveragedModel; torch.compile
_PREFIX_TOKENS = (1, 0, 2, 5)  # class token; none; distilled; class token and four registers
_SHOWN = 6
_NEW = "it starts random"


@dataclass(frozen=True, slots=True)
class _Resampled:
    """A tensor of position embeddings that was brought to another number of tokens."""

    name: str
    before: int
    now: int

    def __str__(self) -> str:
        return f"{self.name}: positions resampled from {self.before} to {self.now} tokens (bicubic)"


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Report on every tensor. Of ``parameters`` numbers in the model, without buffers, ``loaded_parameters`` were loaded."""

    origin: Origin
    loaded: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of tensors that exist in both but do not fit."""
    missing: tuple[str, ...] = ()
    """Tensors of the model that are not in the source; they keep their random values."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the source that are not in the model."""
    notes: tuple[str, ...] = ()
    """Sentences on conversions: loaded by order, head rows matched by class name, positions resampled."""
    loaded_parameters: int = 0
    parameters: int = 0
    resampled: tuple[_Resampled, ...] = ()
    """Those of ``loaded`` that were resampled."""
    unused: tuple[tuple[str, str], ...] = ()
    """(name, reason) of the tensors of the source that were not used: those that do not fit, and ``unexpected``."""
    head: Literal["none", "fresh", "rows", "loaded"] = "none"
    """``fresh``: no tensor of the head was loaded. ``rows``: ``head_rows`` of its classes were. ``none``: it has no head."""
    head_rows: int = 0
    head_fresh: int = 0
    """Number of tensors of the head that were not loaded."""

    @property
    def source(self) -> str:
        """The source as the log names it."""
        return self.origin.source

    def lines(self) -> list[str]:
        """The report in plain sentences, for a log."""
        share = 100 * self.loaded_parameters / max(1, self.parameters)
        lines = [
            f"weights from {self.source}: {self.loaded_parameters:,} of {self.parameters:,} parameters loaded "
            f"({share:.1f} %, {len(self.loaded)} tensors)",
            *self.notes,
            *(f"not loaded: {name}: {why}" for name, why in self.skipped),
        ]
        if self.missing:
            lines.append(f"not in the source, so random: {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"in the source but not in the model, so unused: {_some(self.unexpected)}")
        return lines


@dataclass
class _Tally:
    """A report in the making."""

    loaded: State = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resampled: list[_Resampled] = field(default_factory=list)
    random_rows: dict[str, int] = field(default_factory=dict)
    """Number of head rows for classes that are not in the source, by tensor name."""


def load_weights(
    model: nn.Module, source: Path, num_classes: int, *, classes: Sequence[str] | None = None
) -> WeightsReport:
    """Loads ``source`` into ``model``, which has ``num_classes`` outputs, and reports what was loaded and what was not.

    ``source`` is a weights file (.pth, .pt, .bin, .safetensors) or the directory of an earlier run or Bundle.
    ``classes`` are the names of the model's outputs: where the source knows its own, head rows go by name. Heads of
    another size start random and narrow (:mod:`stagewright.model.heads`); position embeddings of another picture size are
    resampled. ModelError where the source
    cannot be read, holds numbers that are not finite, or belongs to another network (:mod:`stagewright.model.fit`).
    """
    path, names, run = locate(Path(source))
    state, note, sha256 = read_tensors(path)
    return transfer(
        model,
        state,
        Origin("file" if run is None else "run", str(source), sha256=sha256, run=run),
        num_classes,
        classes=classes,
        source_classes=names,
        ordered=path.suffix != ".safetensors",
        notes=[note] if note else [],
    )


def transfer(
    model: nn.Module,
    state: State,
    origin: Origin,
    num_classes: int,
    *,
    classes: Sequence[str] | None = None,
    source_classes: Sequence[str] | None = None,
    ordered: bool = False,
    notes: Sequence[str] = (),
) -> WeightsReport:
    """Copies the tensors of ``state`` that fit into ``model``, as described at :func:`load_weights`.

    ``ordered`` states that the order of ``state`` is that of the model it came from (safetensors sorts names). Then, if the
    names do not fit, tensors are matched by order, provided that their number and all shapes except the head's are equal.
    """
    ours = model.state_dict()
    head = head_tensors(model, num_classes)
    state, how = _renamed(model, ours, state, head, ordered)
    counters = {name for name in (*ours, *state) if name.endswith(COUNTER)}
    require_fit(model, ours, state, head | counters, lambda name: _fits(name, ours[name], state[name]), origin.source)
    tally = _Tally(notes=[*notes, *how])
    for name, own in ours.items():
        if name not in state:
            if name in head:
                tally.skipped.append((name, f"the source has no such head; {_NEW}"))
            elif not name.endswith(COUNTER):  # absent from files of torch < 1.1, and of no consequence
                tally.missing.append(name)
        elif name in head:
            _fill_head(tally, name, own, state[name], classes, source_classes)
        else:
            _fill(tally, name, own, state[name])
    _require_finite(tally.loaded, origin.source)
    with torch.no_grad():
        for name, tensor in tally.loaded.items():
            ours[name].copy_(tensor)
    narrow_head(model, head - tally.loaded.keys())
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    random = sum(rows * ours[name][0].numel() for name, rows in tally.random_rows.items())
    unexpected = tuple(name for name in state if name not in ours)
    unfitting = [(name, why) for name, why in tally.skipped if name in state]
    rows = num_classes - max(tally.random_rows.values(), default=0)
    filled = "loaded" if rows == num_classes else "rows"
    return WeightsReport(
        origin=origin,
        loaded=tuple(tally.loaded),
        skipped=tuple(tally.skipped),
        missing=tuple(tally.missing),
        unexpected=unexpected,
        notes=tuple(dict.fromkeys(tally.notes)),
        loaded_parameters=sum(numbers.get(name, 0) for name in tally.loaded) - random,
        parameters=sum(numbers.values()),
        resampled=tuple(tally.resampled),
        unused=(*unfitting, *((name, "not in the model") for name in unexpected)),
        head="none" if not head else filled if head & tally.loaded.keys() else "fresh",
        head_rows=rows if head & tally.loaded.keys() else 0,
        head_fresh=len(head - tally.loaded.keys()),
    )


def _fill(tally: _Tally, name: str, own: Tensor, theirs: Tensor) -> None:
    if theirs.shape == own.shape:
        tally.loaded[name] = theirs
        return
    resampled = _resampled(name, own, theirs)
    if resampled is None:
        tally.skipped.append((name, f"{shape(theirs)} in the source, {shape(own)} here"))
    else:
        tally.loaded[name] = resampled
        tally.resampled.append(_Resampled(name, theirs.shape[1], own.shape[1]))
        tally.notes.append(str(tally.resampled[-1]))


def _resampled(name: str, own: Tensor, theirs: Tensor) -> Tensor | None:
    """Returns position embeddings (1, tokens, width) resampled to the size of ``own``; None for any other tensor."""
    if name.rsplit(".", 1)[-1] not in ("pos_embed", "pos_embedding") or own.ndim != 3 or theirs.ndim != 3:
        return None
    if own.shape[::2] != theirs.shape[::2]:
        return None
    for prefix in _PREFIX_TOKENS:
        sides = [isqrt(max(0, tokens - prefix)) for tokens in (theirs.shape[1], own.shape[1])]
        if all(side > 0 for side in sides) and [side * side + prefix for side in sides] == [
            theirs.shape[1],
            own.shape[1],
        ]:
            from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage]

            return resample_abs_pos_embed(theirs, [sides[1], sides[1]], num_prefix_tokens=prefix)
    return None


def _fill_head(
    tally: _Tally,
    name: str,
    own: Tensor,
    theirs: Tensor,
    classes: Sequence[str] | None,
    source_classes: Sequence[str] | None,
) -> None:
    if theirs.shape[1:] != own.shape[1:]:
        tally.skipped.append((name, f"the head is {shape(theirs)} in the source, {shape(own)} here; {_NEW}"))
    elif classes is not None and source_classes is not None and len(source_classes) == len(theirs):
        rows = {known: row for row, known in enumerate(source_classes)}
        shared = [known for known in classes if known in rows]
        if not shared:
            tally.skipped.append((name, f"the source's head has no class in common with these; {_NEW}"))
            return
        merged = own.detach().clone()
        for row, known in enumerate(classes):
            if known in rows:
                merged[row] = theirs[rows[known]].to(merged)
        tally.loaded[name] = merged
        tally.random_rows[name] = len(classes) - len(shared)
        tally.notes += _head_notes(classes, source_classes)
    elif theirs.shape == own.shape:
        tally.loaded[name] = theirs
        tally.notes.append(
            f"the head was loaded unchanged: both have {len(theirs)} classes, but without class names to compare, so their "
            "order is assumed to be the same"
        )
    else:
        tally.skipped.append((name, f"the head has {len(theirs)} classes in the source, {len(own)} here; {_NEW}"))


def _head_notes(classes: Sequence[str], source_classes: Sequence[str]) -> list[str]:
    if tuple(classes) == tuple(source_classes):
        return ["the head was loaded completely: the source has the same classes in the same order"]
    shared = [name for name in classes if name in set(source_classes)]
    new = [name for name in classes if name not in set(source_classes)]
    unused = [name for name in source_classes if name not in set(classes)]
    lines = [f"head rows were copied by class name for {len(shared)} of {len(classes)} classes"]
    if new:
        lines.append(f"classes new to the source, whose head rows start random: {_some(new)}")
    if unused:
        lines.append(f"classes of the source that are not used: {_some(unused)}")
    return lines


def _renamed(model: nn.Module, ours: State, state: State, head: set[str], ordered: bool) -> tuple[State, list[str]]:
    """Returns ``state`` with the model's names, by the conversion that fits best (the first of equals), and notes on it."""
    plain = {_PREFIXES.sub("", name): tensor for name, tensor in state.items() if name != "n_averaged"}
    readings: list[tuple[State, list[str]]] = [(plain, [])]
    first = {name.partition(".")[0] for name in plain}
    if len(first) == 1 and all("." in name for name in plain):
        readings.append(({name.partition(".")[2]: tensor for name, tensor in plain.items()}, []))
    if _fit(ours, plain, head) < 1:
        readings += _converted_by_timm(model, plain)
    best = max(readings, key=lambda reading: _fit(ours, reading[0], head))
    if _fit(ours, best[0], head) >= 0.5 or not ordered:
        return best
    return _by_order(ours, plain, head) or best


def _converted_by_timm(model: nn.Module, state: State) -> list[tuple[State, list[str]]]:
    """Returns ``state`` converted by the ``checkpoint_filter_fn`` of timm's module, for original checkpoints, or []."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return []
    try:
        converted = convert(dict(state), model)
    except MemoryError:
        raise
    except Exception:  # it is written for the checkpoints of one family, and may raise anything for others
        return []
    return [(dict(converted), [f"names converted by {type(model).__module__}.checkpoint_filter_fn"])]


def _by_order(ours: State, state: State, head: set[str]) -> tuple[State, list[str]] | None:
    own = [name for name in ours if not name.endswith(COUNTER)]
    theirs = [name for name in state if not name.endswith(COUNTER)]
    if len(own) != len(theirs):
        return None
    for mine, other in zip(own, theirs, strict=True):
        skip = 1 if mine in head else 0
        if ours[mine].shape[skip:] != state[other].shape[skip:] or ours[mine].ndim != state[other].ndim:
            return None
    note = (
        f"names do not fit ({theirs[0]} against {own[0]}), but all {len(own)} tensors have the same shapes in the same "
        "order: loaded by order"
    )
    return {mine: state[other] for mine, other in zip(own, theirs, strict=True)}, [note]


def _fit(ours: State, state: State, head: set[str]) -> float:
    """Returns the share of the model's tensors, without head and BatchNorm counters, that ``state`` has by name and shape."""
    body = [name for name in ours if name not in head and not name.endswith(COUNTER)]
    fits = sum(name in state and _fits(name, ours[name], state[name]) for name in body)
    return fits / len(body) if body else 1.0


def _fits(name: str, own: Tensor, theirs: Tensor) -> bool:
    return own.shape == theirs.shape or _resampled(name, own, theirs) is not None


def _require_finite(state: State, source: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{source}: {name} has numbers that are not finite (NaN or infinity)",
                "weights of a training that did not diverge",
                "use an earlier checkpoint of that training",
            )


def _some(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + more
