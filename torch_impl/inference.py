"""A network made for inference, in PyTorch: batch norms folded into convolutions, channels_last, compiled."""

from __future__ import annotations

import copy
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .live import settings
from .resnet import ResNet

# For how many pairs of image size and batch size a compiled network is kept: each has the weights once more.
# At torch's own limit, 8, a server of a few sizes and batches loses the gain, of which a line in a log tells.
_MOST_SHAPES = 32


def optimize_for_inference(model: ResNet, *, compile: bool = True) -> nn.Module:
    """The same network for inference only, and faster.

    With each batch norm W' = W gamma / sqrt(variance + epsilon) and
    b' = beta + (b - mean) gamma / sqrt(variance + epsilon), computed in float64 and rounded once.

    Args:
        model: it stays as it is.
        compile: with `torch.compile`, weights as constants. It takes a C++ compiler (g++, clang, MSVC), and
            the first call of each image size and batch size some ten seconds. What was compiled is kept, with
            the weights once more, for 32 of these; any further ones run uncompiled.
            With False none of this holds, and a part of the gain remains.

    Returns:
        A module that keeps nothing for a backward pass, best fed with channels_last images. Not compiled
        it is a `ResNet` with `norm="bias"`, to be called under `torch.inference_mode()`.

    Raises:
        TypeError: it is not a `ResNet` of this package.
        RuntimeError: on a GPU, where TensorFlow was imported before triton: no compiler then.
        ValueError: it was changed to what no keywords describe.

    Example:
        >>> from torch_impl import se_resnet20
        >>> fast = optimize_for_inference(se_resnet20(), compile=False)
        >>> with torch.inference_mode():
        ...     fast(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if not isinstance(model, ResNet):
        raise TypeError(f"a {type(model).__name__} was given, expected a torch_impl.ResNet")
    keywords = model.live_keywords()
    if compile:
        _check_compiler(model.fc.weight.device)
    fast: Any = copy.deepcopy(model).eval().requires_grad_(False)
    for name, bn in list(fast.named_modules()):
        if isinstance(bn, nn.BatchNorm2d):
            conv = re.sub(r"downsample\.1$", "downsample.0", re.sub(r"bn(\d?)$", r"conv\1", name))
            fast.set_submodule(conv, _fused(fast.get_submodule(conv), bn))
            fast.set_submodule(name, nn.Identity())
    spatial_bias = keywords["cbam_spatial_bias"] or keywords["cbam_bn"]
    fast.config = keywords | {"norm": "bias", "cbam_bn": False, "cbam_spatial_bias": spatial_bias}
    fast._made = settings(fast)
    fast.to(memory_format=torch.channels_last)
    return _Compiled(fast) if compile else fast


def _check_compiler(device: torch.device) -> None:
    """`RuntimeError` where a GPU needs triton, which `import_order` had to hide."""
    if device.type == "cuda" and "triton" in sys.modules and sys.modules["triton"] is None:
        raise RuntimeError(
            "TensorFlow was imported before triton, which PyTorch needs to compile for a GPU; "
            "import torch_impl before TensorFlow, or pass compile=False"
        )


class _Compiled(nn.Module):
    """A module compiled with its weights as constants, kept in the layout that each kernel wants.

    Weights that are arguments of the compiled code are laid out anew in every call: 25 of 97 ms.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.compiled: Any = torch.compile(  # type: ignore[call-overload]
            module, dynamic=False, recompile_limit=_MOST_SHAPES
        )

    def forward(self, x: Tensor) -> Tensor:
        from torch._inductor import config

        # around the call, in which it is compiled: `torch.compile(options={"freezing": True})` comes too late
        with torch.inference_mode(), config.patch(freezing=True):
            return self.compiled(x)


def _fused(conv: Any, bn: nn.BatchNorm2d) -> nn.Module:
    """A convolution followed by a batch norm, as one convolution."""
    dtype = conv.weight.dtype
    return fuse_conv_bn_eval(conv.double(), bn.double()).to(dtype)
