"""Networks for inference in PyTorch: batch norms folded into convolutions, channels_last, compiled."""

from __future__ import annotations

import copy
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .live import Network, settings
from .vgg import VGG

# Number of compiled versions to keep, one per image size and batch size; each holds a copy of the weights.
# With torch's own limit, 8, a server with a few sizes and batches loses the gain, reported only in a log.
_MOST_SHAPES = 32


def optimize_for_inference(model: Network, *, compile: bool = True) -> nn.Module:
    """The same network for inference only, and faster.

    With each batch norm W' = W gamma / sqrt(variance + epsilon) and
    b' = beta + (b - mean) gamma / sqrt(variance + epsilon), computed in float64 and rounded once.

    Args:
        model: it is not changed.
        compile: use `torch.compile`, with the weights as constants. This needs a C++ compiler (g++, clang,
            MSVC), and the first call for each image size and batch size takes some ten seconds. The compiled
            code is kept for 32 such pairs, each with a copy of the weights; other pairs run uncompiled.
            False needs no compiler and keeps a part of the gain.

    Returns:
        A module without gradients, fastest with channels_last images. Without `compile` it is a network with
        `norm="bias"`; call it under `torch.inference_mode()`.

    Raises:
        TypeError: `model` is not a network of this package.
        RuntimeError: on a GPU, TensorFlow was imported before triton, which the compiler needs.
        ValueError: `model` was changed, and no keywords describe it now.

    Example:
        >>> from torch_impl import se_resnet20
        >>> fast = optimize_for_inference(se_resnet20(), compile=False)
        >>> with torch.inference_mode():
        ...     fast(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if not isinstance(model, Network):
        raise TypeError(f"received a {type(model).__name__}, expected a network of torch_impl")
    keywords = model.live_keywords()
    if compile:
        _check_compiler(next(model.parameters()).device)
    fast: Any = copy.deepcopy(model).eval().requires_grad_(False)
    for name, bn in list(fast.named_modules()):
        if isinstance(bn, nn.BatchNorm2d):
            conv = _conv_before(name)
            fast.set_submodule(conv, _fused(fast.get_submodule(conv), bn))
            fast.set_submodule(name, nn.Identity())
    if isinstance(fast, VGG):  # without batch norms its layers have other numbers
        fast.features = nn.Sequential(
            *(layer for layer in fast.features if not isinstance(layer, nn.Identity))
        )
        pools = [i for i, layer in enumerate(fast.features) if isinstance(layer, nn.MaxPool2d)]
        fast.stage_ends = [i + 1 for i in pools]
    spatial_bias = keywords["cbam_spatial_bias"] or keywords["cbam_bn"]
    fast.config = keywords | {"norm": _norm(keywords), "cbam_bn": False, "cbam_spatial_bias": spatial_bias}
    fast._made = settings(fast)
    fast.to(memory_format=torch.channels_last)
    return _Compiled(fast) if compile else fast


def _norm(keywords: dict[str, Any]) -> str:
    """The norm without batch norms; a group norm depends on the image and stays."""
    return "gn" if keywords["norm"] == "gn" else "bias"


def _conv_before(bn: str) -> str:
    """The name of the convolution before a batch norm; in selective kernels also of the layer `fc1`."""
    if bn.endswith("sk.bn"):
        return f"{bn[:-2]}fc1"
    name = re.sub(r"bn(\d?)$", r"conv\1", bn)
    return re.sub(r"(downsample|features)\.(\d+)$", lambda found: f"{found[1]}.{int(found[2]) - 1}", name)


def _check_compiler(device: torch.device) -> None:
    """Raise `RuntimeError` if a GPU needs triton and `import_order` has hidden it."""
    if device.type == "cuda" and "triton" in sys.modules and sys.modules["triton"] is None:
        raise RuntimeError(
            "TensorFlow was imported before triton, which PyTorch needs to compile for a GPU; "
            "import torch_impl before TensorFlow, or pass compile=False"
        )


class _Compiled(nn.Module):
    """A module compiled with its weights as constants, stored in the layout of each kernel.

    Weights passed as arguments of the compiled code are laid out again in every call: 25 of 97 ms.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.compiled: Any = torch.compile(  # type: ignore[call-overload]
            module, dynamic=False, recompile_limit=_MOST_SHAPES
        )

    def forward(self, x: Tensor) -> Tensor:
        from torch._inductor import config

        # the call compiles; `torch.compile(options={"freezing": True})` has no effect at this point. On a CPU
        # `cpp_wrapper` puts all kernels into one C++ file, which saves a third of the time
        with torch.inference_mode(), config.patch(freezing=True, cpp_wrapper=x.device.type == "cpu"):
            return self.compiled(x)


def _fused(conv: Any, bn: nn.BatchNorm2d) -> nn.Module:
    """A convolution or dense layer followed by a batch norm, as one layer."""
    dtype = conv.weight.dtype
    fuse: Any = fuse_linear_bn_eval if isinstance(conv, nn.Linear) else fuse_conv_bn_eval
    return fuse(conv.double(), bn.double()).to(dtype)
