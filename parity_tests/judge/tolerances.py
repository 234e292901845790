"""Every tolerance of the project with its reason; they are the same for all models.

All are relative to the largest absolute value of the reference at the compared point.
"""

from __future__ import annotations

import numpy as np

# Measured on damped weights (`synthetic.weights`): at most 7.4e-15 at any point of any network, including 152
# layers and SENet-154. One batch-norm epsilon of 1.001e-5 instead of 1e-5 moves the logits by 2e-10.
FLOAT64 = 1e-12

# Largest float32 error as a multiple of a point's noise: torch's float32 against torch's float64 with the
# same weights. The largest ratio measured for another framework is 5.5. Wrong weights or layers do not raise
# the noise, because both runs are torch's; the error itself is against the NumPy judge.
FLOAT32_FACTOR = 8

# The resolution of float32 values, a lower bound of the noise.
FLOAT32_RESOLUTION = float(np.finfo(np.float32).eps)

# Largest float64 error of a layer as a multiple of its noise: the effect on torch's output of changing the
# images by one ulp. The largest measured ratio is 1.9, including undamped networks of 101 layers; one of
# these is chaotic (one ulp becomes 2e-4, and Keras differs from torch by as much).
FLOAT64_FACTOR = 8

# float32 without measured noise, because neither model is torch's: ten times the worst layer of a
# well-conditioned network (1.3e-6).
FLOAT32_UNMEASURED = 1e-5

# Upper bound of all limits: if rounding alone moves an output by more, a comparison proves nothing. The
# chaotic network above needs 2e-3.
CEILING = 1e-2

# Gradients in float64 on damped weights, batch statistics, per tensor: at most 2e-13 with SE, ECA or no
# attention, and 7e-14 with respect to the input of any network.
FLOAT64_GRADIENT = 1e-12

# With CBAM: the gradients of the two scalars of its spatial batch normalisation are sums over the whole map
# that nearly cancel; measured: 5e-12.
FLOAT64_CBAM_GRADIENT = 1e-10

# float32 gradients of networks with up to SHALLOW_BLOCKS residual blocks; 1e-5 is usual. In deeper networks,
# and rarely in these, rounding moves a value near 0 across the kink of a ReLU: torch itself is off by 0.04 to
# 0.17. Also the limit of the first training step, whose momentum buffers are the gradients; its loss is off
# by 4e-7.
FLOAT32_SHALLOW_GRADIENT = 3e-5
SHALLOW_BLOCKS = 4

# After 20 training steps in float64 with damped weights. Measured: 3e-14 at learning rate 2^-5, and 2e-11 in
# the running statistics of CBAM at 2^-3. A different optimiser is off by 1e-5 or more.
FLOAT64_TRAINING = 1e-10


def float32_limit(noise: float) -> float:
    """The largest float32 error allowed at a point with this measured noise."""
    if not np.isfinite(noise):  # float32 overflows: no noise was measured
        return FLOAT32_UNMEASURED
    return min(CEILING, FLOAT32_FACTOR * max(noise, FLOAT32_RESOLUTION))


def float64_limit(noise: float) -> float:
    """The largest float64 error allowed at a point with this measured noise."""
    if not np.isfinite(noise):
        return FLOAT64
    return min(CEILING, max(FLOAT64, FLOAT64_FACTOR * noise))


def is_comparable(reference: np.ndarray) -> bool:
    """Whether the reference has a finite value; without one there is nothing to compare."""
    return bool(np.isfinite(widened(reference)).any())


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """max |actual - reference| / max |reference|, over the finite values.

    Infinite for different shapes, a NaN or infinity on one side only, different integers or booleans, and a
    reference without finite values.
    """
    if actual.shape != reference.shape or not is_comparable(reference):
        return float("inf")
    if actual.dtype.kind in "biu" and reference.dtype.kind in "biu":  # float64 cannot represent all integers
        return 0.0 if np.array_equal(actual, reference) else float("inf")
    actual, reference = widened(actual), widened(reference)
    finite = np.isfinite(reference)
    if not np.array_equal(actual[~finite], reference[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(actual[finite]).all():
        return float("inf")
    scale = float(np.abs(reference[finite]).max())
    with np.errstate(over="ignore"):  # an overflow gives infinity
        error = float(np.abs(actual[finite] - reference[finite]).max())
    if error == 0:
        return 0.0
    return error / scale if scale else float("inf")


def widened(array: np.ndarray) -> np.ndarray:
    """The array as float64, complex numbers as complex128."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
