"""Two models layer by layer: the first difference, the layer that is wrong by itself, gradients, training."""

from parity_tests.compare.layers import assert_parity, compare_models
from parity_tests.compare.report import Report
from parity_tests.compare.trace import TF1Model

__all__ = ["Report", "TF1Model", "assert_parity", "compare_models"]
