"""Import triton before TensorFlow, never after it.

Importing triton after TensorFlow crashes the process: a segmentation fault, or "LLVM ERROR: inconsistency in
registered CommandLine options" (TensorFlow 2.21 with triton 3.8 and 3.9). The other order works. Importing
torch does not import triton; PyTorch's compiler does: at the first step of any optimiser, in `torch.compile`
and in `torch.export`. Importing triton takes about 0.25 s.

Each package of this project imports this file first. `torch_impl`, `keras_impl`, `tf1_compat` and
`weights_convert` have the same file, so that each folder can be copied alone.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec


def triton_before_tensorflow() -> None:
    """Import triton if TensorFlow is not imported yet; otherwise hide triton from this process.

    Hiding triton changes nothing for PyTorch's optimisers and compiler on a CPU. On a GPU `torch.compile`
    reports that triton is missing. If triton or TensorFlow is not installed, this function does nothing.
    """
    if "triton" in sys.modules or find_spec("triton") is None or find_spec("tensorflow") is None:
        return
    if "tensorflow" in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]  # `import triton` raises ImportError
        return
    try:
        importlib.import_module("triton")
    except ImportError:  # a build for another system; PyTorch works without triton
        sys.modules.pop("triton", None)


triton_before_tensorflow()
