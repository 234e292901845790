"""Compares two models layer by layer: the first difference, the wrong layer, gradients, training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity_tests.compare.layers import assert_parity, compare_models
    from parity_tests.compare.report import Report
    from parity_tests.watch.exported.functions import Callable
    from parity_tests.watch.trace import TF1Model

__all__ = ["Callable", "Report", "TF1Model", "assert_parity", "compare_models"]

_WHERE = {
    "compare_models": "compare.layers",
    "assert_parity": "compare.layers",
    "Report": "compare.report",
    "Callable": "watch.exported.functions",
    "TF1Model": "watch.trace",
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest imports this package at every start, because of the plugin."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"parity_tests.{_WHERE[name]}"), name)
