"""Import triton before TensorFlow, never after it.

TensorFlow first and triton second ends the process: a segmentation fault, or "LLVM ERROR: inconsistency in
registered CommandLine options" (TensorFlow 2.21 with triton 3.8 and 3.9). triton first and TensorFlow second
works. PyTorch imports triton with its compiler: at the first step of any optimiser, in `torch.compile` and in
`torch.export`. Importing torch alone is not enough. Importing triton takes about 0.25 s.

Each package of this project imports this file first. It is the same text in `torch_impl`, `keras_impl`,
`tf1_compat` and `weights_convert`, so that each folder can be copied alone.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec


def triton_before_tensorflow() -> None:
    """Import triton if TensorFlow is not imported yet; otherwise hide triton from this process.

    Without triton PyTorch's optimisers and its compiler work on a CPU as they do with it. On a GPU
    `torch.compile` reports that triton is missing. Nothing happens where triton or TensorFlow is not
    installed.
    """
    if "triton" in sys.modules or find_spec("triton") is None or find_spec("tensorflow") is None:
        return
    if "tensorflow" in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]  # `import triton` raises ImportError
        return
    try:
        importlib.import_module("triton")
    except ImportError:  # it was built for another system, and PyTorch works without it
        sys.modules.pop("triton", None)


triton_before_tensorflow()
