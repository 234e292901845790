"""Files of other kinds, by their first bytes: what each is, and what to do."""

from __future__ import annotations

import re

_SAVE = "save the state dict or the weights where the network was made"
# first bytes -> what the file is; a protobuf is known by its first fields
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        rb"\x08\x01\x12.*",
        f"the graph of a SavedModel; {_SAVE}",
    ),
    (rb"\x08[\x01-\x20]\x12.{1,3}\x0a.*", f"a Core ML model; {_SAVE}"),
    (rb"\x08[\x02-\x20][\x12\x1a\x22\x2a\x3a\x42].*", f"an ONNX graph; {_SAVE}"),
    (rb".{4}TFL3.*", f"a TensorFlow Lite model; {_SAVE}"),
    (rb"\x0a.{1,3}\x0a.[\x20-\x7e]+\x12.[A-Z].*", f"a frozen TensorFlow graph; {_SAVE}"),
    (
        rb"\s*(?:#[^\n]*\n\s*)*(?:name|layers?)\s*[:{].*",
        "a Caffe prototxt, which has no weights; name the .caffemodel",
    ),
    (rb"version https://git-lfs.*", "a pointer of Git LFS, not the file; fetch it with git lfs pull"),
    (rb"\s*(?:<!DOCTYPE html|<html).*", "a web page, not a checkpoint; download the file itself"),
    (rb"\s*<\?xml.*", "an XML text (an error of a server, or OpenVINO's), not a checkpoint"),
    (rb"\s*[\[{][\s\"\[{].*", "a JSON text; name the folder that holds it, or the file of weights"),
    (rb"\x1f\x8b.*", "a gzip archive; unpack it (gunzip, tar xzf) and name the checkpoint in it"),
    (rb"\./\./@PaxHeader.*", "a tar archive; unpack it (tar xf) and name the checkpoint in it"),
    (rb"(?:BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd).*", "a packed file; unpack it first"),
    (rb"MATLAB 5.*", "a MATLAB file (MatConvNet); save its arrays with numpy.savez"),
    (rb"\x12\x01\x00\x00\x00\x00\x00\x00.*", "MXNet's arrays (.params); save them with numpy.savez"),
    (rb".{4}ET\d\d.*", f"an ExecuTorch program; {_SAVE}"),
    (rb"\x80[\x02-\x05].*", "a pickle; load it where you trust it, and save its arrays with numpy.savez"),
    (rb"GGUF.*", f"a GGUF file; {_SAVE}"),
    (rb"\x93NUMPY.*", "one array of NumPy (.npy); save all of them with numpy.savez"),
)


def other_kind(head: bytes) -> str | None:
    """The description of a file with these first bytes, None if it is not one of these kinds."""
    return next((what for pattern, what in _KINDS if re.fullmatch(pattern, head, re.DOTALL)), None)


def other_folder(names: list[str]) -> str | None:
    """The description of a folder with these names, or None."""
    if {"saved_model.pb", "saved_model.pbtxt"} & {*names}:
        return (
            "a SavedModel, which holds code; load it with keras.models.load_model or tf.saved_model.load "
            "where you trust it, and save its weights (model.save_weights('x.weights.h5'))"
        )
    return None
