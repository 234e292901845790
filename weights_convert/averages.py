"""Moving averages in a TF1 checkpoint: the shadow variables of `tf.train.ExponentialMovingAverage`."""

from __future__ import annotations

from weights_convert.errors import SourceError
from weights_convert.formats.base import Reader
from weights_convert.identify.reading import Reading

_SHADOW = "/ExponentialMovingAverage"


def averages_of(reader: Reader) -> dict[str, str]:
    """Name of a variable -> name of its moving average in the file."""
    return {name.removesuffix(_SHADOW): name for name in reader.tensors if name.endswith(_SHADOW)}


def list_averaged(reader: Reader) -> None:
    """List the variables of a file that holds only their averages."""
    for name, average in averages_of(reader).items():
        reader.tensors.setdefault(name, reader.tensors[average])


def mention_averages(reader: Reader, reading: Reading) -> list[str]:
    """A remark on the averages that the file holds of the network's tensors, if any."""
    count = len(_of_network(reader, reading))
    text = f"holds moving averages of {count} tensors too; --ema (in Python ema=True) takes them"
    return [text] if count else []


def take_averages(reader: Reader, reading: Reading) -> list[str]:
    """Read the averages in the place of the variables that have one; returns a remark.

    Raises:
        SourceError: no tensor of the network has one.
    """
    averages = _of_network(reader, reading)
    if not averages:
        raise SourceError(
            f"{reader.path}: holds no moving averages, expected names that end in {_SHADOW}; omit --ema"
        )
    reading.names = {
        canonical: tuple(averages.get(name, name) for name in names)
        for canonical, names in reading.names.items()
    }
    used = {*averages.values()}
    reading.left_out = {name: what for name, what in reading.left_out.items() if name not in used}
    return [f"took the moving averages of {len(averages)} tensors in the place of their last values"]


def _of_network(reader: Reader, reading: Reading) -> dict[str, str]:
    names = {name for names in reading.names.values() for name in names}
    return {name: average for name, average in averages_of(reader).items() if name in names}
