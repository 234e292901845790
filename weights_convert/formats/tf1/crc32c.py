"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) in NumPy: the checksum of LevelDB tables and TF checkpoints.

A CRC is the remainder of the message, read as a polynomial over GF(2), modulo P. Two facts make it fast
without a loop over bytes:

- P divides x^5685 + x^1362 + x^426 + 1. Squaring keeps that true (over GF(2), f(x)^2 = f(x^2)), so it holds
  for x^s with s = 8, 16, 32, ... too: a byte may be removed if it is XORed into the bytes 4323, 5259 and
  5685 places (times a power of two) further on. This folds any length to 5685 bytes with plain XORs.
- The rest is a sum: each bit that is set contributes its own power of x modulo P, looked up in a table.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # P without its x^32, lowest power in the highest bit, as everywhere below
_WINDOW = 5685
_JUMPS = (_WINDOW - 1362, _WINDOW - 426, _WINDOW)
_CHUNK = 1 << 22  # bytes copied and folded at once
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | bytearray | memoryview | np.ndarray, value: int = 0) -> int:
    """The CRC-32C of `data`; `value` is the CRC of the bytes before it.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    >>> crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
    True
    """
    data = np.frombuffer(data, np.uint8)
    register = value ^ 0xFFFFFFFF
    for start in range(0, data.size, _CHUNK):
        register = _advance(register, data[start : start + _CHUNK].copy())
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A CRC with LevelDB's mask, as stored: a CRC over data that contains CRCs would be weak."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _advance(register: int, message: np.ndarray) -> int:
    """The register after `message`, which is overwritten."""
    head = min(4, message.size)
    message[:head] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)[:head]
    bits = np.unpackbits(_fold(message), bitorder="little")
    remainder = np.bitwise_xor.reduce(_powers()[-bits.size :] * bits)
    return int(remainder) ^ (register >> 8 * message.size)


def _fold(message: np.ndarray) -> np.ndarray:
    """At most `_WINDOW` bytes with the same remainder as `message`, which is overwritten."""
    start = 0
    scale = 1 << (message.size // _WINDOW).bit_length()
    while scale := scale // 2:
        end = message.size - _WINDOW * scale
        while start < end:
            stop = min(start + _JUMPS[0] * scale, end)  # the XORs change later bytes only
            for jump in _JUMPS:
                message[start + jump * scale : stop + jump * scale] ^= message[start:stop]
            start = stop
    return message[start:]


@cache
def _powers() -> np.ndarray:
    """x^k modulo P for each bit of a window, the first bit first; the last bit has k = 32."""
    powers = np.empty(8 * _WINDOW, np.uint32)
    power = _POLYNOMIAL
    for i in reversed(range(powers.size)):
        powers[i] = power
        power = (power >> 1) ^ (_POLYNOMIAL if power & 1 else 0)
    return powers
