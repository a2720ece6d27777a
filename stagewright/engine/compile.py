"""The compiled network: one graph for each shape that the plan knows, and none by surprise.

A graph belongs to a batch size, an image size, to training or evaluation, and in training to a trainable set. All of them
are known before the run (:func:`known_graphs`), and as many are allowed: torch gives up compiling a function at the ninth by
default and runs it uncompiled from then on, which a run of three stages reaches. A last batch of an evaluation that is short
is filled up with blank pictures, which in evaluation change nothing for the others; a last micro-batch of an update is not,
since batch norm would count them, and has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.engine.micro_batches import micro_batch_sizes
from stagewright.errors import ModelError, RecipeError
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.system.memory import out_of_memory

_COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True, slots=True)
class Graph:
    """What a compiled graph is for."""

    batch_size: int
    image_size: int
    train: str | tuple[str, ...] | None
    """In training, the trainable set: which parameters need gradients, and which modules are frozen, is built into a graph.
    None in evaluation, which is alike for all."""


class Compiled:
    """``model`` in its compiled form, to be called with images (B, 3, S, S)."""

    def __init__(self, model: nn.Module, plan: Plan, device: torch.device) -> None:
        """RecipeError for CUDA graphs on a device that has none."""
        self.model = model
        self.cuda_graphs = plan.recipe.compile == "cudagraphs"
        if self.cuda_graphs and device.type != "cuda":
            raise RecipeError(
                f"compile: cudagraphs on {device}",
                "cudagraphs on a CUDA device; true or false on any",
                "--set compile=true, or --device cuda where there is one",
            )
        allow(len(known_graphs(plan)))
        mode = "reduce-overhead" if self.cuda_graphs else None
        # Sizes are constant within a stage, so dynamic shapes would only cost speed.
        self.forward: Any = torch.compile(model, dynamic=False, mode=mode)

    def __call__(self, images: Tensor) -> Tensor:
        if self.cuda_graphs:
            # What the graphs of the call before gave may be overwritten now: all of it was used.
            torch.compiler.cudagraph_mark_step_begin()
        try:
            if torch.is_grad_enabled():
                return self.forward(images)
            with _frozen(self.model):
                return self.forward(images)
        except RuntimeError as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise  # the network's own
            raise _explained(error) from error

    def keep_gradients(self) -> None:
        """To be called between two backward passes of one update: gradients of the first, which a CUDA graph has in memory
        that its next replay overwrites (github.com/pytorch/pytorch, issue 169545), move to memory of their own, and
        those of the others are added to them there."""
        if self.cuda_graphs:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()


def _explained(error: RuntimeError) -> Exception:
    """What to tell a person where compiling has failed; memory that ran out meanwhile is the guard's affair."""
    inner = getattr(error, "inner_exception", error)
    if out_of_memory(inner):
        return inner
    reason = str(error).strip().split("\n")[0]
    return ModelError(
        f"compile: true, and torch could not compile the network: {reason}",
        "a network that torch.compile takes, and a C++ compiler (on CUDA Triton too)",
        "--set compile=false runs it as it is; Debian's package g++ is a compiler",
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Nothing needs gradients inside: torch builds that into a graph even where none are computed, and would compile the
    evaluation anew for each trainable set."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def known_graphs(plan: Plan) -> set[Graph]:
    """The graphs that a run of ``plan`` needs at most: fewer where a head trains on features kept in memory."""
    graphs: set[Graph] = set()
    for stage in plan.stages:
        graphs |= {Graph(size, stage.image_size, stage.train) for size in _parts(stage)}
        seen = {min(stage.micro_batch_size, count) for count in (plan.dataset.num_val, plan.dataset.num_test) if count}
        graphs |= {Graph(size, eval_image_size(plan, stage), None) for size in seen}
    return graphs


def _parts(stage: StagePlan) -> set[int]:
    """Batch sizes that go through the network in training."""
    return set(micro_batch_sizes(stage.batch_size, stage.micro_batch_size))


def allow(graphs: int) -> None:
    """Lets torch compile so many graphs more of a function before it gives up: each network brings the room that it needs,
    beside what other networks of its kind in this process have taken."""
    from torch._dynamo import config  # takes a second, which runs that do not compile need not spend

    config.recompile_limit = config.recompile_limit + graphs
    config.accumulated_recompile_limit = config.accumulated_recompile_limit + graphs


def filled_up(images: Tensor, size: int) -> Tensor:
    """``images`` (B, 3, S, S) with blank ones behind them to make ``size``; as they are where there are as many already."""
    missing = size - len(images)
    if missing <= 0:
        return images
    blank = torch.zeros_like(images[:1]).expand(missing, -1, -1, -1)
    return torch.cat([images, blank]).contiguous(memory_format=_format(images))


def _format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
