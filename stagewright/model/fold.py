"""Folds batch norms in inference mode into the convolutions in front of them: the same function with fewer operations.

A batch norm with fixed statistics is a scale and a shift for each channel, y = gamma (x - mean) / sqrt(var + eps) + beta. If
x is the output of a convolution and has no other use, the scale can go into its weight and the shift into its bias (Jacob et
al., arXiv:1712.05877, section 3.2). :func:`find_pairs` finds the pairs once by running the network, :func:`folded_tensors`
computes the folded tensors from the present ones, differentiably, and :func:`skeleton` is the network that takes them.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagewright.system.memory import out_of_memory

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CLOSE = 1e-2
"""Largest accepted difference of the trial, relative to the largest absolute value: rounding is far below it (float32, and TF32
where that is on), a wrong pair with random statistics far above."""


def find_pairs(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Returns {convolution's name: batch norm's name} of the pairs of ``model`` that can be folded; empty if there are none.

    A pair: both run exactly once, the norm's only input is the convolution's output, and nothing else uses that output. Linear
    layers count as convolutions. Found by running a copy of the network in float32 on the CPU on ``images`` (B, 3, S, S), with
    random weights and statistics of its own: so the pairs depend on the network alone, also where its present weights are
    zeros, which would hide a difference, or not finite. Each pair is checked by its numbers, and
    all together by the logits; if those differ, or the network cannot run in this way, there are no pairs. ``model`` and torch's
    generators stay as they are.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial = trial_copy(model).eval()
            given = images.detach().to("cpu", torch.float32)
            watch = _Watch(trial)
            with watch:
                logits = watch.run(given)
            pairs = watch.pairs()
            if not pairs:
                return {}
            folded = functional_call(skeleton(trial, pairs), folded_tensors(trial, pairs), (given,))
            return pairs if _close(folded, logits) else {}
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        if out_of_memory(error):
            raise
        return {}  # a network that cannot be copied or cannot run in float32 is used as it is


def pairs_at(model: nn.Module, image_size: int) -> dict[str, str]:
    """Returns the pairs of ``model`` for images of ``image_size`` x ``image_size`` pixels, found by :func:`find_pairs`."""
    random = torch.Generator().manual_seed(0)
    return find_pairs(model, torch.randn(1, 3, image_size, image_size, generator=random))


def skeleton(model: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """Returns a copy of ``model`` whose paired convolutions have a bias, and whose paired norms do nothing but their activation.

    It has the modes of ``model``. Its own tensors have no meaning: call it with those of :func:`folded_tensors`.
    """
    copied = copy.deepcopy(model)
    for convolution, norm in pairs.items():
        _give_bias(copied.get_submodule(convolution))
        copied.set_submodule(norm, _after_scaling(copied.get_submodule(norm)))
    return copied


def folded_tensors(model: nn.Module, pairs: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns all parameters and buffers of the skeleton by name, computed from the present tensors of ``model``.

    ``torch.func.functional_call(skeleton(model, pairs), folded_tensors(model, pairs), (images,))`` is the network with its paired
    norms in inference mode. Differentiable with respect to the parameters of ``model``. Folded weights keep dtype and memory
    format; tensors outside of the pairs are the model's own.
    """
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for convolution, norm in pairs.items():
        for name in _NORM_TENSORS:
            tensors.pop(f"{norm}.{name}", None)
        weight, bias = folded_pair(model.get_submodule(convolution), model.get_submodule(norm))
        tensors[f"{convolution}.weight"], tensors[f"{convolution}.bias"] = weight, bias
    return tensors


@torch.no_grad()
def folded_copy(model: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """Returns a copy of ``model`` in evaluation mode with its pairs folded, which needs no gradients; for repeated inference."""
    folded = skeleton(model, pairs).eval().requires_grad_(False)
    own = {**dict(folded.named_parameters()), **dict(folded.named_buffers())}
    for name, tensor in folded_tensors(model, pairs).items():
        own[name].copy_(tensor)
    return folded


def folded_pair(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns weight and bias (C,) of ``convolution`` followed by ``norm`` in inference mode."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    weight, bias = convolution.get_parameter("weight"), getattr(convolution, "bias", None)
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    each = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight * each).to(weight.dtype), shift.to(weight.dtype)


def _give_bias(convolution: nn.Module) -> None:
    weight = convolution.get_parameter("weight")
    if getattr(convolution, "bias", None) is None:
        convolution.bias = nn.Parameter(weight.new_zeros(len(weight)))


def _after_scaling(norm: nn.Module) -> nn.Module:
    """Returns what of a norm is left without its scale and shift: Identity, or the activation of timm's BatchNormAct2d."""
    left = nn.Sequential()
    for name, part in norm.named_children():  # timm's: drop, then act, in the order of their use
        left.add_module(name, part)  # the same names, because an activation may have parameters
    return left.train(norm.training) if len(left) else nn.Identity()


@torch.no_grad()
def trial_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of ``model`` in float32 on the CPU, with its modes, but with random weights and statistics of its own.

    What is found out by running it depends on the network alone, also where present weights are zeros, which would hide a
    difference, or not finite.
    """
    trial = copy.deepcopy(model).to("cpu", torch.float32)
    _randomise(trial)
    return trial


def _randomise(model: nn.Module) -> None:
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # Half of the spread that keeps activations in size: a layer that standardises its weight first is then seen.
        fan_in = parameter.numel() // len(parameter) if parameter.ndim > 1 else 4
        parameter.normal_(0, 0.5 / max(1, fan_in) ** 0.5, generator=random)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            for tensor in (norm.running_mean, norm.bias):
                if tensor is not None:
                    tensor.normal_(0, 0.3, generator=random)
            for tensor in (norm.running_var, norm.weight):
                if tensor is not None:
                    tensor.uniform_(0.5, 1.5, generator=random)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not torch.isfinite(second).all():
        return False
    return bool((first - second).abs().max() <= _CLOSE * second.abs().max().clamp(min=1e-12))


@dataclass(slots=True)
class _Output:
    """The output of a convolution in the run: the tensor (kept, so that its id stays its own), and how often it was used."""

    convolution: str
    given: Tensor
    tensor: Tensor
    uses: int = 0


@dataclass
class _Watch(TorchDispatchMode):
    """Context of one run of ``model``: which norm is applied to which convolution's output, and all uses of these outputs."""

    model: nn.Module
    outputs: dict[int, _Output] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation of torch, and counts it as a use of the outputs among its inputs."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self.outputs:
                self.outputs[id(leaf)].uses += 1
        return func(*args, **(kwargs or {}))

    def run(self, images: Tensor) -> Tensor:
        """Returns the logits of the model for ``images``."""
        names = Counter(id(parameter) for _, parameter in self.model.named_parameters(remove_duplicate=False))
        handles = []
        try:
            for name, part in self.model.named_modules():
                hook = None
                if isinstance(part, _CONVOLUTIONS) and _takes_scale(part, names):
                    hook = self._convolution_hook(name)
                elif isinstance(part, _BatchNorm) and part.running_mean is not None and not _has_hooks(part):
                    hook = self._norm_hook(name)
                if hook is not None:
                    handles.append(part.register_forward_hook(hook))
            return self.model(images)
        finally:
            for handle in handles:
                handle.remove()

    def pairs(self) -> dict[str, str]:
        """Returns the pairs that the run found."""
        once = {output.convolution for output in self.outputs.values() if output.uses == 1}
        return {
            convolution: norm
            for convolution, norm in self.found.items()
            if convolution in once and self.calls[convolution] == self.calls[norm] == 1
        }

    def _convolution_hook(self, name: str) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            self.calls[name] += 1
            if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(result, Tensor):
                self.outputs[id(result)] = _Output(name, given[0], result)

        return note

    def _norm_hook(self, name: str) -> Callable[..., None]:
        def note(norm: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            self.calls[name] += 1
            output = self.outputs.get(id(given[0])) if len(given) == 1 else None
            if output is None or not isinstance(norm, _BatchNorm) or not isinstance(result, Tensor):
                return
            convolution = self.model.get_submodule(output.convolution)
            fits = norm.num_features == len(convolution.get_parameter("weight"))
            if fits and _same(convolution, norm, output.given, result):
                self.found[output.convolution] = name

        return note


def _same(convolution: nn.Module, norm: nn.Module, given: Tensor, result: Tensor) -> bool:
    """Returns whether the folded pair yields ``result`` for ``given``; not so if the convolution changes its weight first."""
    weight, bias = folded_pair(convolution, norm)
    folded = copy.copy(convolution)  # without a copy of the tensors, which for all pairs would take longer than the run
    folded._forward_hooks = OrderedDict()
    folded._parameters = {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)}
    return _close(_after_scaling(norm)(folded(given)), result)


def _takes_scale(convolution: nn.Module, names: Counter[int]) -> bool:
    """Returns whether a scale can go into the weight: a parameter of this module alone, and nothing listens to the output."""
    own = [parameter for parameter in (convolution._parameters.get("weight"), convolution._parameters.get("bias"))]
    return own[0] is not None and all(names[id(p)] == 1 for p in own if p is not None) and not _has_hooks(convolution)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
