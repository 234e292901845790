"""The current keywords of a network, read from its modules, so that changes after construction count.

A state dict holds no stride and no epsilon. The state dict of a network therefore carries the keywords in its
metadata, which `torch.save` keeps, and these keywords must describe the current modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .blocks import make_head
from .keywords import check_classes, check_keywords
from .layers import refuse_script

_SHOWN_BY = {  # keyword -> pattern of the settings that show it: path of a module and attribute
    "in_channels": r"(conv1|features\.0|stem\.unit1\.conv|Conv2d_1a_3x3\.conv)\.in_channels",
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
    "transform_input": r"transform_input",
    "count_padding": r".*\.count_padding",
}
# attributes without effect on the meaning of weights
_SKIPPED = ("training", "process_group", "grad_checkpointing")
_SAME = {"SyncBatchNorm": "BatchNorm2d"}  # classes that compute the same at inference
_PLAIN = (bool, int, float, str, tuple, type(None))
_ABSENT = "absent"
Part = tuple[str, dict[str, Any], nn.Module]  # path of a module, keywords, the module that they make


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
            found[f"{path}.bias".lstrip(".")] = part.bias is not None
        for name, value in vars(part).items():
            if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _SKIPPED:
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def _at(found: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings of one module of a network."""
    return {name: value for name, value in found.items() if f"{name}.".startswith(f"{path}.")}


def below(module: nn.Module, path: str) -> dict[str, Any]:
    """The settings of one module, under their names in a network that has the module at `path`."""
    kind = {} if isinstance(module, nn.Identity) else {path: type(module).__name__}
    return kind | {f"{path}.{name}": value for name, value in settings(module).items()}


class Network(nn.Module):
    """Base class of all networks: writes the current keywords to the state dict.

    Attributes:
        kind: the name of this kind of network in the metadata.
        head, entrance: the names of its classifier and of its first convolution.
        stem_pools: value of `stem_pool` -> module.
        config: the keywords of its construction.
        num_features: channels of the classifier's input.
        feature_info: of each stage, as in timm: its channels `num_chs`, the `reduction` of the images' height
            and width, and the name of its last `module` before the next reduction.
        grad_checkpointing: see `set_grad_checkpointing`.
    """

    kind: ClassVar[str]
    head: ClassVar[str]
    entrance: ClassVar[str]
    stem_pools: ClassVar[Mapping[str, Callable[[], nn.Module]]] = {}
    num_features: int
    feature_info: list[dict[str, Any]]
    __prepare_scriptable__ = refuse_script

    def __init__(self, keywords: Mapping[str, Any]):
        super().__init__()
        self.config = check_keywords(keywords, self.kind)
        self.grad_checkpointing = False
        self._made: dict[str, Any] = {}

    def check_input(self, x: Tensor) -> None:
        """Raise `ValueError` unless `x` is (N, C, H, W) of floats, with the C of the first convolution."""
        if not isinstance(x, Tensor) or torch.jit.is_tracing():  # while torch.fx traces, shapes are unknown
            return
        if x.dim() == 4 and x.shape[1] == self.config["in_channels"] and x.is_floating_point():
            return
        channels = getattr(self.get_submodule(self.entrance), "in_channels", None)
        if x.dim() != 4 or channels not in (None, x.shape[1]):
            hint = "; permute (N, H, W, C) with (0, 3, 1, 2)" if x.shape[3:] == (channels,) else ""
            wanted = f"(N, {channels or 'C'}, H, W)"
            raise ValueError(f"images of shape {tuple(x.shape)}, expected {wanted}{hint}")
        if not x.is_floating_point():
            dtype = str(x.dtype).removeprefix("torch.")
            raise ValueError(f"images of dtype {dtype}, expected floats, preprocessed as for training")

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one with random weights.

        An optimizer must be made again, because it knows the old classifier's parameters.

        Args:
            num_classes: of the new classifier; 0 for none, the output is then its input.

        Raises:
            ValueError: `num_classes` is invalid.

        Example:
            >>> import torch_impl
            >>> model = torch_impl.se_resnet20()
            >>> model.reset_classifier(4)
            >>> model(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 4])
        """
        num_classes, like = check_classes("num_classes", num_classes), next(self.parameters())
        for name, inputs in self.classifiers().items():
            head = make_head(inputs, num_classes, self.config["head_bias"])
            self.set_submodule(name, head.to(like.device, like.dtype).train(self.training))

    def classifiers(self) -> dict[str, int]:
        """The name of each classifier, and the channels of its input; the first is the network's own."""
        return {self.head: self.num_features}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training keep only the inputs of the blocks, and run them again for the gradients.

        This needs less memory and more time, and gives the same gradients. The blocks are the residual
        blocks of a ResNet, the stages of a VGG, the modules of an Inception network and the units of a
        MobileNet or ShuffleNet. Batch norms count each batch once.
        """
        self.grad_checkpointing = enable

    def recomputes(self) -> bool:
        """Whether blocks run again in the backward pass now."""
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()

    def live_keywords(self) -> dict[str, Any]:
        """The current keywords of the network, including changes of its modules after construction.

        Raises:
            ValueError: no keywords describe the current modules.
        """
        now = settings(self)
        if now == self._made:
            return dict(self.config)
        parts: list[Part] = [
            ("maxpool", {"stem_pool": rule}, make()) for rule, make in self.stem_pools.items()
        ]
        described: dict[str, Any] = {"num_classes": 0}
        layer = dict(self.named_modules()).get(self.head)
        if type(layer) is nn.Linear and layer.in_features == self.num_features:
            described = {"num_classes": layer.out_features, "head_bias": layer.bias is not None}
        like = self.config | described  # all classifiers have the same classes
        heads = {
            name: make_head(inputs, like["num_classes"], like["head_bias"])
            for name, inputs in self.classifiers().items()
        }
        parts += [(name, described, head) for name, head in heads.items()]
        found = live_keywords(self._made, now, self.config, parts)
        for name, head in heads.items():
            if _at(now, name) != below(head, name):
                raise ValueError(
                    f"{name} does not have the {like['num_classes']} classes of {self.head}; "
                    "call reset_classifier(num_classes), which replaces both"
                )
        return check_keywords(found, self.kind)

    def _metadata(self) -> str:
        """The keywords as a file holds them; `ValueError` as `live_keywords`."""
        return json.dumps({"mapping_version": 1, "kind": self.kind, "spec": self.live_keywords()})

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Also write the keywords to the state dict's metadata, which `torch.save` keeps.

        If no keywords describe the network, it is saved without them.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with suppress(ValueError):
            if hasattr(destination, "_metadata"):
                destination._metadata[prefix[:-1]]["samenet"] = self._metadata()

    def _save_pretrained(self, folder: Path) -> None:
        """Write the weights and the current keywords; called by huggingface_hub's `PyTorchModelHubMixin`.

        Raises:
            ValueError: no keywords describe the current modules.
        """
        from safetensors.torch import save_file

        (folder / "config.json").write_text(json.dumps(self.live_keywords(), indent=2), encoding="utf-8")
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt", "samenet": self._metadata()})


def live_keywords(
    made: dict[str, Any],
    now: dict[str, Any],
    keywords: dict[str, Any],
    parts: list[Part],
) -> dict[str, Any]:
    """The current keywords of a network.

    Args:
        made: its settings after construction.
        now: its current settings.
        keywords: the keywords of its construction.
        parts: the modules that other keywords make.

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
    for path, described, module in parts:
        others = [name for name in changed if not f"{name}.".startswith(f"{path}.")]
        if len(others) < len(changed) and _at(now, path) == below(module, path):
            found, changed = found | described, others
    if changed:
        name = changed[0]
        raise ValueError(
            f"{name} is {now.get(name, _ABSENT)!r}, but {made.get(name, _ABSENT)!r} by the network's keywords"
            f"{f' (and {len(changed) - 1} more differ)' if changed[1:] else ''}; "
            "create the network with the keywords you need"
        )
    return found
