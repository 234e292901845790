"""Every tolerance of the project, in one place, with its reason. No model has numbers of its own.

All are relative to the largest absolute value of the reference at the point that is compared.
"""

from __future__ import annotations

import numpy as np

# Measured on damped weights (`synthetic.weights`): at most 7.4e-15 at any point of any network, 152 layers
# and SENet-154 included. One batch-norm epsilon of 1.001e-5 for 1e-5 moves the logits by 2e-10.
FLOAT64 = 1e-12

# How often the float32 noise of a point may be exceeded: torch's float32 against torch's float64, same
# weights, is the noise; the worst ratio of another framework that was measured is 5.5. Both runs are torch's,
# so wrong weights or layers do not raise it: the error itself is taken against the NumPy judge.
FLOAT32_FACTOR = 8

# A float32 value cannot be told from its neighbours any better, however small the measured noise is.
FLOAT32_RESOLUTION = float(np.finfo(np.float32).eps)

# float64, layer by layer: what a change of the images by one ulp makes of torch's own output there. So often
# it may be exceeded; the worst measured is 1.9, undamped nets of 101 layers included, one of which is chaotic
# (one ulp becomes 2e-4, and Keras differs from torch by as much).
FLOAT64_FACTOR = 8

# float32 where no noise could be measured, because neither model is torch's: ten times the worst layer of a
# well-conditioned net (1.3e-6).
FLOAT32_UNMEASURED = 1e-5

# No limit exceeds this, whatever noise was measured: where rounding alone moves an output by more, a
# comparison proves nothing. The chaotic net above needs 2e-3.
CEILING = 1e-2

# Gradients in float64 on damped weights, batch statistics, per tensor: at most 2e-13 with SE, ECA or no
# attention, and 7e-14 with respect to the input of any network.
FLOAT64_GRADIENT = 1e-12

# With CBAM: its spatial batch normalisation has two scalars, whose gradients are sums over the whole map
# that nearly cancel; 5e-12 was measured there.
FLOAT64_CBAM_GRADIENT = 1e-10

# float32 gradients of nets of this many residual blocks; 1e-5 is usual. In deeper ones (and now and then in
# these) a value near 0 comes to lie on the other side of a ReLU: torch itself is off by 0.04 to 0.17.
# Also of the first step of training, whose momentum buffers are the gradients; the loss is off by 4e-7.
FLOAT32_SHALLOW_GRADIENT = 3e-5
SHALLOW_BLOCKS = 4

# After 20 steps of training in float64, damped weights, learning rate 2^-5: 3e-14 was measured, and 2e-11 in
# the running statistics of CBAM at 2^-3. An optimiser that differs is off by 1e-5 or more.
FLOAT64_TRAINING = 1e-10


def float32_limit(noise: float) -> float:
    """The largest float32 error allowed at a point with this measured noise."""
    if not np.isfinite(noise):  # float32 overflows there: nothing was measured
        return FLOAT32_UNMEASURED
    return min(CEILING, FLOAT32_FACTOR * max(noise, FLOAT32_RESOLUTION))


def float64_limit(noise: float) -> float:
    """The largest float64 error allowed at a point with this measured noise."""
    if not np.isfinite(noise):
        return FLOAT64
    return min(CEILING, max(FLOAT64, FLOAT64_FACTOR * noise))


def is_comparable(reference: np.ndarray) -> bool:
    """Whether there is a finite value in it; without one a comparison compares nothing."""
    return bool(np.isfinite(widened(reference)).any())


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """max |actual - reference| / max |reference|, over the finite values.

    Infinite for another shape, a NaN or infinity out of place, integers or booleans that are not equal, and
    a reference without any finite value.
    """
    if actual.shape != reference.shape or not is_comparable(reference):
        return float("inf")
    if actual.dtype.kind in "biu" and reference.dtype.kind in "biu":  # float64 has not all of them
        return 0.0 if np.array_equal(actual, reference) else float("inf")
    actual, reference = widened(actual), widened(reference)
    finite = np.isfinite(reference)
    if not np.array_equal(actual[~finite], reference[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(actual[finite]).all():
        return float("inf")
    scale = float(np.abs(reference[finite]).max())
    with np.errstate(over="ignore"):  # infinite then
        error = float(np.abs(actual[finite] - reference[finite]).max())
    if error == 0:
        return 0.0
    return error / scale if scale else float("inf")


def widened(array: np.ndarray) -> np.ndarray:
    """In float64, complex numbers in complex128."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
