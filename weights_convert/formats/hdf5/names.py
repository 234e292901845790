"""The names of tensors in Keras files by the layers' own names, which a path in the file does not show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from weights_convert.spec import numbered


def layer_names(paths: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
    """Name -> path, with the layers of functional and sequential models by their names.

    Args:
        paths: of the tensors.
        layers: path of a layer -> its name.

    >>> layer_names(["layers/res_net/conv1/vars/0"], {"layers/res_net": "student"})
    {'student/conv1/vars/0': 'layers/res_net/conv1/vars/0'}
    >>> layer_names(["layers/bottleneck/conv1/vars/0"], {"layers/bottleneck": "layer1_0"})
    {'layer1/bottleneck/conv1/vars/0': 'layers/bottleneck/conv1/vars/0'}
    """
    names: dict[str, str] = {}
    named = _in_lists({path: name for path, name in layers.items() if "/" not in name})
    for path in paths:
        parts, steps, at = path.split("/"), [], 0
        while at < len(parts):
            layer = named.get("/".join(parts[: at + 2])) if parts[at] == "layers" else None
            steps.append(layer or parts[at])
            at += 2 if layer else 1
        name = "/".join(steps)
        names[path if name in names else name] = path
    return names


def _in_lists(layers: Mapping[str, str]) -> dict[str, str]:
    """A network's layers by their places in its own file, where lists number their members by class."""
    found = {path: match for path, name in layers.items() if (match := numbered().fullmatch(name))}
    counts: Counter[tuple[str, ...]] = Counter()
    names = dict(layers)
    for path in sorted(found, key=lambda path: int(found[path][2])):
        folder, _, member = path.rpartition("/")
        of_class = re.sub(r"_\d+$", "", member)
        place = folder, found[path][1], of_class
        names[path] = f"{place[1]}/{of_class}_{counts[place]}" if counts[place] else f"{place[1]}/{of_class}"
        counts[place] += 1
    return names


def legacy_names(paths: Iterable[str], networks: Collection[str]) -> dict[str, str]:
    """Name -> path in an older `.h5`: `conv1/kernel` -> `model_weights/conv1/conv1_1/kernel:0`.

    Args:
        paths: of the tensors.
        networks: names of this project's networks in the file, "" for the whole model.

    >>> legacy_names(["model_weights/layer1_0/net/layer1_0/conv1/kernel"], [""])
    {'layer1_0/conv1/kernel': 'model_weights/layer1_0/net/layer1_0/conv1/kernel'}
    >>> legacy_names(["model_weights/outer/net/layer1_0/conv1/kernel"], ["net"])
    {'net/layer1_0/conv1/kernel': 'model_weights/outer/net/layer1_0/conv1/kernel'}
    """
    if not networks:
        return _short_names(paths)
    names: dict[str, str] = {}
    for path in paths:  # from the last step that is the name of its network, or of its layer
        layer = path.removeprefix("model_weights/").partition("/")[0]
        first = next((name for name in networks if f"/{name}/" in path), layer)
        name = f"{first}/{f'/{path}'.rpartition(f'/{first}/')[2]}"
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
