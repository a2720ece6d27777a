"""Counts the multiply-adds of a network's forward pass on one image, and refuses to count what it would count wrongly.

The counter is torch's ``FlopCounterMode``, which knows the matrix products and convolutions of a fixed list of operators and
takes all others for 0. That is right for norms, activations and sums, and wrong for a fused operator with products inside, such
as an attention kernel of which it has no formula (on a CPU all of them, up to torch 2.13). So attention is computed by its parts
here, and what is left of such operators is an error that names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from stagewright.errors import ModelError
from stagewright.model.groups import modes_kept
from stagewright.system.memory import out_of_memory
from stagewright.text import some

_PRODUCTS = frozenset(
    {
        *("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "addr", "matmul", "mlp", "chain", "kron", "einsum"),
        *("dot", "vdot", "vecdot", "tensordot", "inner", "outer", "ger", "linear", "bilinear", "trilinear", "linalg"),
        *("conv", "conv1d", "conv2d", "conv3d", "convolution", "attention", "sdpa", "sdp", "mha", "transformer"),
        *(
            "rnn",
            "lstm",
            "gru",
            "cdist",
            "pdist",
            "euclidean",
            "solve",
            "spsolve",
            "inverse",
            "cholesky",
            "ormqr",
            "orgqr",
        ),
        *("smm", "hspmm", "sspaddmm", "geqrf"),
    }
)
"""Words in the names of torch's own operators with matrix products, the words of a name being its parts between underscores:
``_scaled_dot_product_flash_attention_for_cpu``, ``mkldnn_linear``. Compared with all operators of torch 2.11 and 2.15."""
_WITHOUT_PRODUCTS = frozenset(
    {
        *("linalg_vector_norm", "linalg_norm", "linalg_cross", "linalg_diagonal", "_fused_sdp_choice"),
        *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "__upsample_bilinear"),
    }
)
"""Names with such a word whose operators have none."""
_KNOWN_NAMESPACES = frozenset({"aten", "prim", "profiler"})
"""Of torch's own operators. What an operator of another library does is unknown."""


def count_macs(model: nn.Module, image_size: int) -> int:
    """Returns the multiply-adds of the matrix products and convolutions in one forward pass of ``model``, in evaluation mode,
    on one image of ``image_size`` x ``image_size`` pixels: half of what ``torch.utils.flop_counter.FlopCounterMode`` counts.

    Other operations (norms, activations, sums, Fourier transforms) count as 0. The pass runs on the model's device with gradients
    on, attention by ``SDPBackend.MATH`` and without the fast path of ``torch.backends.mha``, so that no product hides in a fused
    kernel. Afterwards the model's modes, buffers and gradients, torch's switches and its generators are as before.

    ModelError names the operators that have matrix products but no formula (``register_flop_formula`` gives them one), and says
    why where the network cannot run on one image. Code that leaves torch's dispatcher is not seen, such as an extension's own
    kernel that is called directly.
    """
    first = next(model.parameters(), torch.empty(0))
    counter, watch = FlopCounterMode(display=False), _Watch()
    # Entered first, the watch sees each operator as the counter runs it: after it was taken apart, where that is possible.
    try:
        with _undisturbed(model, first.device), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), watch, counter:
            image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
            # Frozen networks compute with gradients too; not a leaf, which may not be changed in place.
            model(image.requires_grad_().clone())
    except Exception as error:  # a network may be anybody's code
        if out_of_memory(error):
            raise
        raise _cannot_run(model, image_size, error) from error
    if unknown := sorted(watch.seen - {str(one) for one in counter.flop_registry}):
        raise ModelError(
            f"the multiply-adds of {type(model).__name__} cannot be counted: torch's counter has no formula for "
            f"{some(unknown, 6)}",
            "operators that torch.utils.flop_counter has a formula for",
            "register one (torch.utils.flop_counter.register_flop_formula), or a newer torch may have it",
        )
    return counter.get_total_flops() // 2


def num_parameters(model: nn.Module) -> int:
    """Returns the number of all parameters of ``model``; those that it uses twice count once."""
    return sum(parameter.numel() for parameter in model.parameters())


class _Watch(TorchDispatchMode):
    """Collects the names of the operators that run and may have matrix products, as ``aten.bmm``."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", None)
        if packet is None:  # a higher-order operator, of which the counter has a formula: others are its errors
            self.seen.add(str(func))
        elif has_products(func.namespace, packet.__name__):
            self.seen.add(str(packet))
        return func(*args, **(kwargs or {}))


def has_products(namespace: str, name: str) -> bool:
    """Returns whether the operator ``namespace::name`` of torch's dispatcher may have matrix products."""
    if namespace not in _KNOWN_NAMESPACES:
        return True
    plain = name.removesuffix("_backward").removesuffix("_")
    return plain not in _WITHOUT_PRODUCTS and not _PRODUCTS.isdisjoint(plain.split("_"))


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context manager: inside it ``model`` is in evaluation mode, and attention has no fast path; modes, buffers, gradients,
    generators and that switch are restored."""
    buffers = [(part, dict(part._buffers)) for part in model.modules()]
    values = {buffer: buffer.clone() for _, own in buffers for buffer in own.values() if buffer is not None}
    gradients = [(one, one.grad, one.requires_grad) for one in model.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(modes_kept(model))
        try:
            model.eval()
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            with torch.no_grad():
                for part, own in buffers:
                    part._buffers.clear()
                    part._buffers.update(own)
                for buffer, value in values.items():
                    buffer.copy_(value)
            for parameter, gradient, needed in gradients:
                parameter.grad = gradient
                parameter.requires_grad_(needed)


def _cannot_run(model: nn.Module, image_size: int, error: Exception) -> ModelError:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return ModelError(
        f"the multiply-adds of {type(model).__name__} cannot be counted: it does not run on one image of {image_size} x "
        f"{image_size} pixels with gradients on: {text}",
        "a network that runs on one image in evaluation mode, in parts that torch.utils.flop_counter knows",
        "look at what the network does in evaluation mode",
    )
