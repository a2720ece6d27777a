"""Compiles the network with ``torch.compile``: one graph for each combination of shapes and modes in the plan.

A graph is specific to a batch size, an image size, to training or evaluation, and in training to a set of trainable
parameters. All graphs are known before the run (:func:`known_graphs`), and torch's recompile limit is raised by their number:
by default, torch compiles a function at most eight times and then runs it uncompiled, and a run of three stages needs more. If
the last batch of an evaluation is short, it is padded with blank images, which do not affect the others in evaluation mode. The
lanes of an update are not padded, because batch norm would include the blank images in its statistics; if they differ in size,
there are two graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.engine.numerics import takes_channels_last
from stagewright.errors import ModelError, RecipeError
from stagewright.plan.lanes import lane_sizes
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.system.memory import out_of_memory

_COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True, slots=True)
class Graph:
    """The shapes and the mode that a compiled graph is specific to."""

    batch_size: int
    image_size: int
    train: str | tuple[str, ...] | None
    """In training, the stage's ``train`` setting, because the graph depends on which parameters need gradients and which
    modules are frozen. None in evaluation, where one graph serves all stages."""
    norm: str = "train"
    """Whether batch norms use the statistics of the batch: ``train`` or ``frozen``; without meaning in evaluation."""


class Compiled:
    """Callable that runs the compiled ``model``: images (B, 3, S, S) to logits (B, K)."""

    def __init__(self, model: nn.Module, plan: Plan, device: torch.device) -> None:
        """Wraps ``model``; torch compiles each graph at its first call. RecipeError for CUDA graphs without a CUDA device."""
        self.model = model
        self.cuda_graphs = plan.recipe.compile == "cudagraphs"
        if self.cuda_graphs and device.type != "cuda":
            raise RecipeError(
                f"compile: cudagraphs on {device}",
                "cudagraphs on a CUDA device; true or false on any",
                "use --set compile=true, or --device cuda if there is one",
            )
        raise_recompile_limit(len(known_graphs(plan)))
        mode = "reduce-overhead" if self.cuda_graphs else None
        # torch would choose the channels-last layout by itself, also where it is unsafe.
        options: dict[str, Any] | None = None if takes_channels_last(model) else {"layout_optimization": False}
        # Sizes are constant within a stage, so dynamic shapes would only cost speed.
        self.forward: Any = torch.compile(model, dynamic=False, mode=mode, options=options)

    def __call__(self, images: Tensor) -> Tensor:
        if self.cuda_graphs:
            # Outputs of the previous call are no longer used, so CUDA graphs may overwrite them.
            torch.compiler.cudagraph_mark_step_begin()
        try:
            if torch.is_grad_enabled():
                return self.forward(images)
            with _frozen(self.model):
                return self.forward(images)
        except RuntimeError as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise  # an error of the network itself, not of the compiler
            raise _explained(error) from error

    def keep_gradients(self) -> None:
        """Copies all gradients out of the memory of the CUDA graph; call it after each backward pass of several.

        The next replay of the graph would overwrite them (github.com/pytorch/pytorch, issue 169545). Does nothing without CUDA
        graphs.
        """
        if self.cuda_graphs:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()


def _explained(error: RuntimeError) -> Exception:
    """Returns a ModelError that explains a failed compilation, or the OutOfMemoryError behind it, which the guard handles."""
    inner = getattr(error, "inner_exception", error)
    if out_of_memory(inner):
        return inner
    reason = str(error).strip().split("\n")[0]
    return ModelError(
        f"compile: true, and torch could not compile the network: {reason}",
        "a network that torch.compile supports, and an installed C++ compiler (on CUDA also Triton)",
        "use --set compile=false to run it uncompiled, or install a compiler (on Debian: the package g++)",
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Turns ``requires_grad`` off for all parameters inside the context.

    torch specialises a graph on ``requires_grad`` even under ``no_grad``, and would otherwise compile the evaluation again for
    each set of trainable parameters.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def known_graphs(plan: Plan) -> set[Graph]:
    """Returns all graphs that a run of ``plan`` can need; it needs fewer if a head trains on cached features."""
    graphs: set[Graph] = set()
    for stage in plan.stages:
        if stage.fit == "updates":
            graphs |= {Graph(size, stage.image_size, stage.train, stage.norm) for size in _parts(stage)}
        seen = {min(stage.micro_batch_size, count) for count in (plan.dataset.num_val, plan.dataset.num_test) if count}
        graphs |= {Graph(size, eval_image_size(plan, stage), None) for size in seen}
    return graphs


def _parts(stage: StagePlan) -> set[int]:
    """Returns the sizes of the lanes of the stage: they differ by one if the batch cannot be divided evenly."""
    return set(lane_sizes(stage.batch_size, stage.lanes))


def raise_recompile_limit(graphs: int) -> None:
    """Raises torch's limits of compiled graphs per function by ``graphs``.

    The limit is shared by all networks of a class in this process, so each one adds the number that it needs.
    """
    from torch._dynamo import config  # this import takes a second, so only runs that compile do it

    config.recompile_limit = config.recompile_limit + graphs
    config.accumulated_recompile_limit = config.accumulated_recompile_limit + graphs


def pad_batch(images: Tensor, size: int) -> Tensor:
    """Returns ``images`` (B, 3, S, S) with zero images appended, of shape (size, 3, S, S); unchanged if B >= size."""
    missing = size - len(images)
    if missing <= 0:
        return images
    blank = torch.zeros_like(images[:1]).expand(missing, -1, -1, -1)
    return torch.cat([images, blank]).contiguous(memory_format=_memory_format(images))


def _memory_format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
