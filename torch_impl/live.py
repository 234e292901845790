"""The current keywords of a network, read from its modules, so that changes after construction count.

A state dict holds no stride and no epsilon. The state dict of a network therefore carries the keywords in its
metadata, which `torch.save` keeps, and these keywords must describe the current modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from torch import nn

from .keywords import check_keywords

_SHOWN_BY = {  # keyword -> pattern of the settings that show it: path of a module and attribute
    "in_channels": r"(conv1|features\.0)\.in_channels",
    "num_classes": r"(fc|classifier\.6)\.out_features",
    "head_bias": r"(fc|classifier\.6)\.bias",
    "dropout": r"(dropout|classifier\.[25])\.p",
    "bn_epsilon": r".*\.eps",
    "bn_momentum": r"(?!.*\.cbam\.).*\.momentum",
    "cbam_bn_momentum": r".*\.cbam\.spatial\.bn\.momentum",
    "cbam_order": r".*\.cbam\.spatial\.order",
    "cbam_spatial_input": r".*\.cbam\.spatial_input",
    "relu_before_attention": r".*\.relu_before_attention",
    "activation": r"(.*\.)?activation",
    "global_pool": r"global_pool",
    "eca_padding": r".*\.eca\.conv\.padding_mode",
}
_SKIPPED = ("training", "process_group")  # attributes without effect on the meaning of weights
_SAME = {"SyncBatchNorm": "BatchNorm2d"}  # classes that compute the same at inference
_PLAIN = (bool, int, float, str, tuple, type(None))
_ABSENT = "absent"


def settings(module: nn.Module) -> dict[str, Any]:
    """The class of every module (`layer1.0.bn1`) and all its plain attributes (`layer1.0.bn1.eps`).

    Modules that do nothing are left out.
    """
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        if path and not isinstance(part, nn.Identity):
            kind = type(part).__name__
            found[path] = _SAME.get(kind, kind)
        if isinstance(part, nn.Linear):
            found[f"{path}.bias"] = part.bias is not None
        for name, value in vars(part).items():
            if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _SKIPPED:
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def below(module: nn.Module, path: str) -> dict[str, Any]:
    """The settings of one module, under their names in a network that has the module at `path`."""
    kind = {} if isinstance(module, nn.Identity) else {path: type(module).__name__}
    return kind | {f"{path}.{name}": value for name, value in settings(module).items()}


class Network(nn.Module):
    """Base class of all networks: writes the current keywords to the state dict.

    Attributes:
        kind: the name of this kind of network in the metadata.
        stem_pools: value of `stem_pool` -> module.
        config: the keywords of its construction.
    """

    kind: ClassVar[str]
    stem_pools: ClassVar[Mapping[str, Callable[[], nn.Module]]] = {}

    def __init__(self, keywords: Mapping[str, Any]):
        super().__init__()
        self.config = check_keywords(keywords, self.kind)
        self._made: dict[str, Any] = {}

    def live_keywords(self) -> dict[str, Any]:
        """The current keywords of the network, including changes of its modules after construction.

        Raises:
            ValueError: no keywords describe the current modules.
        """
        now = settings(self)
        if now == self._made:
            return dict(self.config)
        pools = {rule: below(make(), "maxpool") for rule, make in self.stem_pools.items()}
        return check_keywords(live_keywords(self._made, now, self.config, pools), self.kind)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Also write the keywords to the state dict's metadata, which `torch.save` keeps.

        If no keywords describe the network, it is saved without them.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with suppress(ValueError):
            metadata = {"mapping_version": 1, "kind": self.kind, "spec": self.live_keywords()}
            if hasattr(destination, "_metadata"):
                destination._metadata[prefix[:-1]]["samenet"] = json.dumps(metadata)


def live_keywords(
    made: dict[str, Any], now: dict[str, Any], keywords: dict[str, Any], pools: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The current keywords of a network.

    Args:
        made: its settings after construction.
        now: its current settings.
        keywords: the keywords of its construction.
        pools: each value of `stem_pool` -> its settings.

    Raises:
        ValueError: no keyword describes a changed setting.
    """
    found = dict(keywords)
    changed = [name for name in made | now if made.get(name, _ABSENT) != now.get(name, _ABSENT)]
    for keyword, pattern in _SHOWN_BY.items():
        shown = [name for name in changed if re.fullmatch(pattern, name)]
        values = [value for name, value in now.items() if re.fullmatch(pattern, name)]
        if shown and len(set(map(repr, values))) == 1:
            found[keyword] = values[0]
            changed = [name for name in changed if name not in shown]
    pool = {name: value for name, value in now.items() if re.fullmatch(r"maxpool(\..*)?", name)}
    if any(name.startswith("maxpool") for name in changed) and pool in pools.values():
        found["stem_pool"] = next(rule for rule, of_rule in pools.items() if of_rule == pool)
        changed = [name for name in changed if not name.startswith("maxpool")]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{name} is {now.get(name, _ABSENT)!r}, but {made.get(name, _ABSENT)!r} by the network's keywords"
            f"{f' (and {len(changed) - 1} more differ)' if changed[1:] else ''}; "
            "create the network with the keywords you need"
        )
    return found
