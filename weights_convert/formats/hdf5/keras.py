"""Reads Keras weights: `.weights.h5`, `.keras` (a zip around one) and the older `.h5`.

Layout, from Keras's `saving_lib.py`: a group per layer with the layer's variables `vars/<i>` in order,
trainable ones first. bfloat16 is stored as two opaque bytes with the attribute `dtype`. The older `.h5`
(`legacy_h5_format.py`): `<layer>/<variable's path>`, below `model_weights` for a whole model. `names.py`
makes the names here. Only numbers are read, and this project's metadata: `vars/samenet` of each network in a
weights file, and the config (`config.py`).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weights_convert.errors import SourceError, WeightsConvertError
from weights_convert.formats.base import METADATA_NAME, Reader, TensorInfo, one_line, parse_metadata
from weights_convert.formats.given import Given
from weights_convert.formats.hdf5.config import agreeing, keywords_in_config
from weights_convert.formats.hdf5.names import layer_names, legacy_names
from weights_convert.formats.hdf5.plain import Dataset, PlainFile, Unusual
from weights_convert.formats.zip import stored, unpacked
from weights_convert.limits import DEFAULT, LimitReached, Limits, too_many

_MAGIC = b"\x89HDF\r\n\x1a\n"
_INNER, _CONFIG = "model.weights.h5", "config.json"
_SAID = f"vars/{METADATA_NAME}"  # written by each network of `keras_impl`: the bytes of a text


def recognises_keras(given: Given) -> bool:
    return given.head.startswith(_MAGIC) or _INNER in given.entries


class KerasReader(Reader):
    """A `.weights.h5` file or the one inside a `.keras` file; names are HDF5 paths (`conv1/vars/0`).

    Attributes:
        config: the text that describes the model, if the file has it.

    Raises:
        SourceError: the file is damaged, or is HDF5 that neither h5py nor Keras writes by default. The error
            has the line of Python that saves such a file again.
    """

    format = "keras"

    def __init__(self, source: Path | Given, limits: Limits = DEFAULT):
        self._given = Given.of(source, limits)
        path, limits = self._given.path, self._given.limits
        super().__init__(path, limits)
        self._datasets: dict[str, Dataset] = {}
        self.config: str | bytes | None = None
        try:
            self._contents = PlainFile(*self._inner(), limits)
            self._list()
        except WeightsConvertError:
            self.close()
            raise
        except Unusual as unusual:
            self.close()
            raise SourceError(
                f"{path}: HDF5 with {unusual}, expected what h5py and Keras write by default; "
                "if you trust the file, save it again with this line of Python:",
                [_saving_again(path, inside_zip=self._given.archive is not None)],
            ) from None
        except LimitReached as reached:
            self.close()
            raise reached.at(path) from None
        except Exception as error:  # damaged input raises nearly any exception
            self.close()
            raise SourceError(
                f"{path}: not a readable Keras file, it is truncated or damaged ({one_line(error)})"
            ) from None

    def _inner(self) -> tuple[BinaryIO, int, int]:
        """File, position and length of the HDF5 data; also keeps the config of a `.keras`."""
        given = self._given
        file, archive = given.file, given.archive
        self.has(given.size)
        if archive is None:
            return file, 0, given.size
        if _CONFIG in archive.namelist():
            self.config = self._text(archive, archive.getinfo(_CONFIG))
        info = archive.getinfo(_INNER)
        if info.compress_type == zipfile.ZIP_STORED:
            return file, stored(file, info), info.file_size
        self.claim(info.file_size)  # unpacked to memory, because HDF5 needs random access
        return unpacked(archive, info), 0, info.file_size

    def _text(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        if info.file_size > self.limits.text:
            raise too_many(self.path, f"bytes of {_CONFIG}", info.file_size, "max_tensors", self.limits.text)
        return unpacked(archive, info).getvalue()

    def _list(self) -> None:
        contents = self._contents
        text = contents.attribute(METADATA_NAME)
        older = any(map(contents.has_attribute, ("layer_names", "layer_names0")))
        datasets = {dataset.path: dataset for dataset in contents.datasets()}
        if older or any(path.startswith("model_weights/") for path in datasets):  # Keras 2, or 3's `.h5`
            self.config = contents.attribute("model_config") if self.config is None else self.config
            named = legacy_names(datasets, self._of_config())
        else:
            named = layer_names(datasets, contents.layers)
        datasets = {name: datasets[path] for name, path in named.items()}
        for name, dataset in datasets.items():
            if dataset.why:
                self.leave_out(name, dataset.why)
            else:
                self._datasets[name] = dataset
                self.add(name, TensorInfo(dataset.shape, dataset.dtype))
        if text is not None:
            self.metadata = parse_metadata(text, self.path, self.limits)
            return
        said, of_config = self._said(), self._of_config()
        self.metadata = agreeing(self.path, said.pop("", {}), of_config.pop("", {}))
        self.networks = of_config | said

    @property
    def functional(self) -> bool:
        """Whether the file is of a functional or sequential model, whose layers have names of their own."""
        return any(path.startswith("layers/") for path in self._contents.layers)

    def _said(self) -> dict[str, dict[str, Any]]:
        """Path of a network -> the metadata beside its weights; removes them from the tensors."""
        found = {}
        for name, info in list(self.tensors.items()):
            is_text = info.dtype == np.uint8 and len(info.shape) == 1
            if not is_text or name.removesuffix(_SAID)[-1:] not in ("", "/"):
                continue
            del self.tensors[name]
            metadata = parse_metadata(self.read(name).tobytes(), self.path, self.limits)
            scope = name.removesuffix(_SAID).rstrip("/")
            if metadata.get("part"):  # written by a layer beside the network's
                scope = scope.rpartition("/")[0]
            found[scope] = metadata
        return found

    def _of_config(self) -> dict[str, dict[str, Any]]:
        return {} if self.config is None else keywords_in_config(self.config, self.path, self.limits)

    def read(self, name: str) -> np.ndarray:
        try:
            return self._contents.read(self._datasets[name])
        except Exception as error:  # as above
            raise SourceError(f"{self.path}: {one_line(name)} is damaged ({one_line(error)})") from None

    def close(self) -> None:
        super().close()
        self._given.close()


def _saving_again(path: Path, inside_zip: bool) -> str:
    """A line of Python that copies an HDF5 file to the layout that is read, as `NAME.plain.h5` beside it."""
    source = f"zipfile.ZipFile({str(path)!r}).open({_INNER!r})" if inside_zip else repr(str(path))
    target = str(path.with_name(f"{path.stem}.plain.h5"))
    return (
        f"import h5py, zipfile; old, new = h5py.File({source}), h5py.File({target!r}, 'x'); "
        "new.attrs.update(old.attrs); old.visititems(lambda name, item: "
        "(new.create_dataset(name, data=item[()]) if isinstance(item, h5py.Dataset) "
        "else new.require_group(name)).attrs.update(item.attrs)); new.close()"
    )
