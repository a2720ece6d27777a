"""Cuts a network in front of the first block that trains, into a frozen lower part and a trainable upper part.

The lower part is the network itself, stopped at the cut (:func:`features_of`). The upper part is a graph
(:func:`upper_part`): the network's ``forward`` is traced symbolically (torch.fx), with every module but those that contain the
cut as a leaf, and the input of the module at the cut becomes the input of the graph. It shares modules and parameters with
the network. :func:`find_cut` tests by running the network whether it can be cut: the lower part must give bit-identical features
twice in training mode and once in evaluation mode, must not change a buffer nor depend on a trainable parameter, and the upper
part must make of them what the whole network gives, bit for bit.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.meta_tracer import MetaTracer

from stagewright.errors import ModelError
from stagewright.model.fold import trial_copy
from stagewright.model.groups import blocks, head_modules, modes_kept
from stagewright.system.memory import out_of_memory


@dataclass(frozen=True, slots=True)
class Cut:
    """The place where a network is cut."""

    name: str
    """Name of the module after the cut, the first of the upper part."""
    bytes_each: int
    """Size in bytes of the features of one image."""


class _CutReached(Exception):
    """Ends a forward pass at the cut."""


def find_cut(model: nn.Module, images: Tensor) -> Cut | None:
    """Returns where ``model``, in its present training mode, can be cut, or None if it cannot.

    ``images`` (B, 3, S, S) with B >= 1 are for the test run; their content does not matter. It runs a copy of the network with
    random weights of its own, so that the answer depends on the network alone, also if a resumed run has weights that are not
    finite. Seeds torch's global generator, as every update does too.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable or len(trainable) == len(list(model.parameters())):
        return None
    try:
        trial, given = trial_copy(model), images.detach().to("cpu", torch.float32)
        cuts = (_cut_at(trial, name, given) for name in _candidates(trial, trainable))
        return next((cut for cut in cuts if cut is not None), None)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return None  # a network that cannot be copied or cannot run in float32 is used as it is


def _candidates(model: nn.Module, trainable: list[str]) -> list[str]:
    """Returns names of modules in front of which the network may be cut: those that contain all trainable parameters, from the
    outermost on, or else the first block with one."""
    shared = _common_prefix([name.split(".")[:-1] for name in trainable])
    found = [".".join(shared[:depth]) for depth in range(1, len(shared) + 1)]
    first = (block for block in blocks(model) if any(name.startswith(f"{block}.") for name in trainable))
    return found or list(first)[:1]


def _common_prefix(paths: list[list[str]]) -> list[str]:
    shared = paths[0]
    for path in paths[1:]:
        length = next((at for at, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), None)
        shared = shared[: min(len(shared), len(path)) if length is None else length]
    return shared


def _cut_at(model: nn.Module, name: str, images: Tensor) -> Cut | None:
    """Returns the cut before the module ``name``, or None if the network cannot be cut there; changes its buffers."""
    with modes_kept(model) as modes:
        return _tested_cut(model, name, images, modes)


def _tested_cut(model: nn.Module, name: str, images: Tensor, modes: dict[nn.Module, bool]) -> Cut | None:
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    module, upper = model.get_submodule(name), upper_part(model, name, images)
    above = set() if upper is None else {key for key, _ in upper.named_parameters()}
    if upper is None or all(key in above for key, _ in model.named_parameters()):  # nothing is frozen before the cut
        return None
    found: list[Tensor] = []
    for seed, training in ((1, True), (2, True), (3, False)):
        for part, mode in modes.items():
            part.training = mode and training
        torch.manual_seed(seed)
        with torch.enable_grad():
            features = features_of(model, module, images)
        if features is None or features.requires_grad:  # a trainable parameter stands before the cut
            return None
        found.append(features)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = module.register_forward_pre_hook(count)
    with torch.no_grad():
        try:
            whole = model(images)
        finally:
            handle.remove()
        same = all(torch.equal(found[0], other) for other in found[1:])
        unchanged = all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())
        if not (
            same and unchanged and calls == 1 and isinstance(whole, Tensor) and torch.equal(whole, upper(found[0]))
        ):
            return None
        if len(upper(found[0][:1])) != 1:  # traced for another number of images than it may be given
            return None
    return Cut(name, found[0][0].numel() * found[0].element_size())


@torch.no_grad()
def linear_cut(model: nn.Module, images: Tensor) -> Cut:
    """Returns the cut in front of the linear layer that is the whole head of ``model`` in evaluation mode.

    ``images`` (B, 3, S, S) with B >= 1 are for the test run. ModelError unless the head is one linear layer with biases that is
    called once, with one vector for each image, and whose outputs are the logits. Runs a copy, as :func:`find_cut` does.
    """
    model, images = trial_copy(model).eval(), images.detach().to("cpu", torch.float32)
    names = head_modules(model)
    head = model.get_submodule(names[0]) if len(names) == 1 else None
    if isinstance(head, nn.Linear) and head.bias is not None:
        calls: list[object] = []
        handle = head.register_forward_pre_hook(lambda *_: calls.append(None))
        logits = model(images)
        handle.remove()
        features = features_of(model, head, images)
        plain = isinstance(logits, Tensor) and len(calls) == 1
        if plain and features is not None and features.ndim == 2 and torch.equal(head(features), logits):
            return Cut(names[0], features[0].numel() * features.element_size())
    what = ", ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in names) or "no module"
    raise ModelError(
        f"fit: optimum: the head of this network is {what}, and its logits are not the outputs of one linear layer",
        "a network whose logits are the outputs of one linear layer with biases",
        "write fit: updates, with epochs and lr, in the stage",
    )


def features_of(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    """Returns the input of ``module`` at its first call in a forward pass of ``model`` on ``images`` (B, 3, S, S).

    None unless that input is a single tensor of shape (B, ...). Nothing after the cut is computed.
    """
    taken: list[Tensor] = []

    def take(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
        constants = not any(isinstance(value, Tensor) for value in named.values())
        if len(given) == 1 and isinstance(given[0], Tensor) and constants and len(given[0]) == len(images):
            taken.append(given[0])
        raise _CutReached

    handle = module.register_forward_pre_hook(take, with_kwargs=True)
    try:
        model(images)
    except _CutReached:
        pass
    finally:
        handle.remove()
    return taken[0] if taken else None


class _UpToTheCut(fx.Tracer):
    """Traces through the modules that contain the cut only; a block's own ``forward`` may do what cannot be traced."""

    name: str

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")


class _WithShapes(_UpToTheCut, MetaTracer):
    """The same with tensors of known shapes, for a ``forward`` that decides by them (timm's ViT on its position embedding)."""


def upper_part(model: nn.Module, name: str, images: Tensor) -> fx.GraphModule | None:
    """Returns the part of ``model`` from the module ``name`` on, which maps that module's input (B, ...) to logits (B, K).

    Its modules and parameters are those of ``model``, under the same names. ``images`` (B, 3, S, S) give the shape that the
    network is traced for. None if it cannot be traced, if ``name`` is not called exactly once with one tensor, or if the rest
    depends on anything else that is computed before it.
    """
    for tracer, arguments in ((_UpToTheCut(), {}), (_WithShapes(), {"meta_args": _as_meta(model, images)})):
        tracer.name = name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(model, concrete_args=_defaults(model), **arguments)
        except Exception:  # a network's own code may fail in any way when it is traced
            continue
        if _keep_upper(graph, name):
            return fx.GraphModule(model, graph)
    return None


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Returns the defaults of the arguments of ``forward`` but the images, which are constants in the traced graph."""
    arguments = list(inspect.signature(model.forward).parameters.values())[1:]
    return {one.name: one.default for one in arguments if one.default is not inspect.Parameter.empty}


def _as_meta(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    first = next(iter(inspect.signature(model.forward).parameters))
    return {first: torch.empty_like(images, device="meta")}


def _keep_upper(graph: fx.Graph, name: str) -> bool:
    """Reduces ``graph`` to the part from the module ``name`` on, which takes that module's input; returns whether it can."""
    nodes = list(graph.nodes)
    calls = [node for node in nodes if node.op == "call_module" and node.target == name]
    if len(calls) != 1 or len(calls[0].args) != 1 or not isinstance(calls[0].args[0], fx.Node):
        return False
    with graph.inserting_before(nodes[0]):
        features = graph.placeholder("features")
    # Only the cut's own input is replaced: whatever else reads the same tensor is a way around the cut.
    calls[0].args = (features,)
    needed = _ancestors(next(node for node in nodes if node.op == "output"))
    if any(node.op == "placeholder" for node in needed - {features}):
        return False
    for node in reversed(nodes):
        if node not in needed:
            graph.erase_node(node)
    return True


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Returns ``node`` and all nodes that it depends on."""
    found: set[fx.Node] = set()
    ahead = [node]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead.extend(one.all_input_nodes)
    return found
