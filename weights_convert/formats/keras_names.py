"""The names of tensors in Keras files by the layers' own names, which a path in the file does not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def layer_names(paths: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
    """Name -> path, with the layers of functional and sequential models by their names.

    Args:
        paths: of the tensors.
        layers: path of a layer -> its name.

    >>> layer_names(["layers/res_net/conv1/vars/0"], {"layers/res_net": "student"})
    {'student/conv1/vars/0': 'layers/res_net/conv1/vars/0'}
    """
    names: dict[str, str] = {}
    for path in paths:
        parts, steps, at = path.split("/"), [], 0
        while at < len(parts):
            layer = layers.get("/".join(parts[: at + 2]), "/") if parts[at] == "layers" else "/"
            named = "/" not in layer
            steps.append(layer if named else parts[at])
            at += 2 if named else 1
        name = "/".join(steps)
        names[path if name in names else name] = path
    return names


def legacy_names(paths: Iterable[str], ours: bool) -> dict[str, str]:
    """Name -> path in an older `.h5`: `conv1/kernel` -> `model_weights/conv1/conv1_1/kernel:0`.

    Args:
        paths: of the tensors.
        ours: whether the file holds networks of this project, whose layers have several variables of a name.

    >>> legacy_names(["model_weights/layer1_0/net/layer1_0/conv1/kernel"], ours=True)
    {'layer1_0/conv1/kernel': 'model_weights/layer1_0/net/layer1_0/conv1/kernel'}
    """
    return _from_their_layer(paths) if ours else _short_names(paths)


def _from_their_layer(paths: Iterable[str]) -> dict[str, str]:
    """Each path from the last step that is its layer's name; nested layers keep their path."""
    names = {}
    for path in paths:
        layer, _, inner = path.removeprefix("model_weights/").partition("/")
        _, found, rest = f"/{inner}".rpartition(f"/{layer}/")
        name = f"{layer}/{rest if found else inner}"
        names[path if name in names else name] = path
    return names


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """`<layer>/<leaf>`; nested layers keep their names."""
    found: dict[str, list[str]] = {}
    for path in paths:
        layer, *inner = path.removeprefix("model_weights/").split("/")
        leaf = inner[-1].removesuffix(":0") if inner else ""
        found.setdefault(path if path.startswith("optimizer_weights/") else f"{layer}/{leaf}", []).append(
            path
        )
    names = {}
    for name, same in found.items():
        for path in same:
            inner_name = "/".join(path.removesuffix(":0").split("/")[-2:])
            alone = len(same) == 1
            names[name if alone else inner_name if inner_name not in names else path] = path
    return names
