"""A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`: its config.json and its card."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.families.base import Family
from weights_convert.families.timm_arguments import arguments_of
from weights_convert.formats import FOLDER
from weights_convert.formats.base import Format
from weights_convert.formats.hub.writer import write_folder
from weights_convert.spec import ResNetSpec

_CARD = """---
library_name: timm
tags:
- image-classification
- timm
license: unknown  # fill in the licence of the weights
---

# {title}

| | |
|---|---|
| origin | `{origin}`, {format} in the {family} layout |
| licence | fill in: the licence of the origin |
| network | {title} |
| keywords | {keywords} |
| input | {feeds} |
| model.safetensors | sha256 `{{sha256}}` |
| verified | every tensor was read back after writing and compared with the source by its sha256 |

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # the path of this folder
```
"""


def container_for(checkpoint: Checkpoint, family: Family) -> Format:
    """The container that writes a checkpoint's folder.

    Raises:
        MismatchError: timm has no such network.
    """
    spec = checkpoint.spec
    if family.name != "timm" or not isinstance(spec, ResNetSpec):
        raise MismatchError(f"a folder holds timm's networks, not {checkpoint.describe()} as {family.name}")
    if not spec.head_bias and spec.num_classes:
        raise MismatchError(f"timm has no network without a bias of its classifier: {checkpoint.describe()}")
    write = partial(write_folder, config=_config(checkpoint, spec), card=_card(checkpoint))
    return dataclasses.replace(FOLDER, write=write)


def _config(checkpoint: Checkpoint, spec: ResNetSpec) -> str:
    architecture, arguments = arguments_of(spec)
    size, feeds = spec.image_size, checkpoint.feeds
    pretrained: dict[str, Any] = {
        "custom_load": False,
        "input_size": [spec.in_channels, size, size],
        "fixed_input_size": False,
        "num_classes": spec.num_classes,
        "first_conv": "conv1" if spec.stem == "7x7" else "conv1.0",
        "classifier": "fc",
    }
    if feeds is not None and feeds.channels == "RGB":
        pretrained |= {"mean": [m / feeds.top for m in feeds.mean], "std": [s / feeds.top for s in feeds.std]}
        if feeds.size:
            pretrained["input_size"] = [spec.in_channels, feeds.size, feeds.size]
        pretrained |= {"crop_pct": feeds.crop} if feeds.crop else {}
        pretrained |= {"interpolation": feeds.interpolation} if feeds.interpolation else {}
    config = {
        "architecture": architecture,
        "num_classes": spec.num_classes,
        "global_pool": spec.global_pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    return json.dumps(config, indent=2) + "\n"


def _card(checkpoint: Checkpoint) -> str:
    spec = checkpoint.spec
    keywords = ", ".join(f"{k}={v!r}" for k, v in spec.model_kwargs().items() if spec.concerns(k))
    text = _CARD.format(
        title=checkpoint.describe(),
        origin=checkpoint.path.name if checkpoint.path else "a model in memory",
        format=checkpoint.format or "live",
        family=checkpoint.family or "torch",
        keywords=keywords,
        feeds=checkpoint.feeds or "not known",
    )
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text)
