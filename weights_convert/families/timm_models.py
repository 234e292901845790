"""timm's names of ResNets, such as `seresnextaa101d_32x8d`, as keywords.

A name is read part by part: attention, kind, depth, variant of the stem, groups. Read from
timm/models/resnet.py (1.0.31).

    >>> keywords_of("seresnetaa50d")["anti_aliasing"], keywords_of("seresnet50tiny")
    ('avg', None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(
    r"(?P<attention>se|eca)?resne(?P<kind>t|xt)(?P<pool>aa|blur|rs)?(?P<depth>\d{2,3})(?P<stem>[cdst]?)"
    r"(?:_(?P<groups>\d+)x(?P<width>\d+)d)?"
)
_ATTENTION = {None: {}, "se": {"attention": "se"}, "eca": {"attention": "eca"}}
_POOL: dict[str | None, dict[str, Any]] = {
    None: {},
    "aa": {"anti_aliasing": "avg"},
    "blur": {"anti_aliasing": "blur"},
    "rs": {"stem": "deep", "stem_width": 32, "stem_pool": "conv", "downsample_pool": "avg"}
    | {"attention": "se", "reduction": 4},
}
_AVERAGE = {"downsample_pool": "avg", "stem_width": 32}
_STEM: dict[str, dict[str, Any]] = {
    "": {},
    "c": {"stem": "deep", "stem_width": 32},
    "d": {"stem": "deep"} | _AVERAGE,
    "s": {"stem": "deep", "stem_width": 64},
    "t": {"stem": "deep_tiered"} | _AVERAGE,
}
_DEPTHS = {
    "10": (1, 1, 1, 1),
    "14": (1, 1, 1, 1),
    "18": (2, 2, 2, 2),
    "26": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
    "201": (3, 24, 36, 4),
    "269": (3, 30, 48, 8),
    "270": (4, 29, 53, 4),
    "350": (4, 36, 72, 4),
    "420": (4, 44, 87, 4),
}
_BASIC = ("10", "18", "34")
_LIGHT = {"attention": "eca", "depths": (1, 1, 11, 3), "downsample_pool": "avg"}
_SPLIT = {"attention": "sk", "sk_split": True}
_SK18 = _SPLIT | {"block": "basic", "reduction": 8, "sk_min_hidden": 16}
_SK50 = _SPLIT | {"depths": (3, 4, 6, 3), "sk_min_hidden": 8}
_OTHERS: dict[str, dict[str, Any]] = {  # the names that do not follow the rule
    "ecaresnetlight": _LIGHT,
    "senet154": {"attention": "se", "depths": (3, 8, 36, 3), "groups": 64, "width_per_group": 4}
    | {"reduce_first": 2, "downsample_kernel": 3, "stem": "deep"},
    "skresnet18": _SK18 | {"depths": (2, 2, 2, 2)},
    "skresnet34": _SK18 | {"depths": (3, 4, 6, 3)},
    "skresnet50": _SK50,
    "skresnet50d": _SK50 | _STEM["d"],
    "skresnext50_32x4d": {"attention": "sk", "groups": 32, "width_per_group": 4},
    "resnet50_gn": {"depths": (3, 4, 6, 3), "norm": "gn"},
    "wide_resnet50_2": {"depths": (3, 4, 6, 3), "width_per_group": 128},
    "wide_resnet101_2": {"depths": (3, 4, 23, 3), "width_per_group": 128},
}
_WIDER_STEM = {"seresnextaa201d_32x8d": {"stem_width": 64}}


def keywords_of(name: str) -> Mapping[str, Any] | None:
    """The keywords of a network by its name in timm (`seresnet50.a1_in1k` too); None for other names."""
    name = name.partition(".")[0]
    if name in _OTHERS:
        return _OTHERS[name]
    match = _NAME.fullmatch(name)
    if match is None or match["depth"] not in _DEPTHS:
        return None
    groups = (
        {"groups": int(match["groups"]), "width_per_group": int(match["width"])} if match["groups"] else {}
    )
    return (
        {"block": "basic" if match["depth"] in _BASIC else "bottleneck", "depths": _DEPTHS[match["depth"]]}
        | _ATTENTION[match["attention"]]
        | _STEM[match["stem"]]
        | _POOL[match["pool"]]
        | groups
        | _WIDER_STEM.get(name, {})
    )
