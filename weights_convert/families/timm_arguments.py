"""The name and the arguments of `timm.create_model` for a network: the inverse of reading a config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from weights_convert.errors import MismatchError, SpecError
from weights_convert.families.configs import SAME, VALUES
from weights_convert.families.timm_models import keywords_of
from weights_convert.spec import TRAINING_ONLY, ResNetSpec, changed, parameters

# timm's own names, of timm 1.0.31; another network is the nearest of them with arguments
_NAMES = " ".join(
    (
        "resnet18 resnet18d resnet34 resnet34d resnet26 resnet26d resnet26t resnet50 resnet50c resnet50d",
        "resnet50s resnet50t resnet101 resnet101c resnet101d resnet101s resnet152 resnet152c resnet152d",
        "resnet152s resnet200 resnet200d resnext50_32x4d resnext50d_32x4d resnext101_32x4d",
        "resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2 resnetaa34d resnetaa50",
        "resnetaa50d resnetaa101d resnetblur18 resnetblur50 resnetblur50d resnetblur101d resnetrs50",
        "resnetrs101 resnetrs152 resnetrs200 resnetrs270 resnetrs350 resnetrs420 seresnet18 seresnet34",
        "seresnet50 seresnet50t seresnet101 seresnet152 seresnet152d seresnet200d seresnet269d",
        "seresnext26d_32x4d seresnext26t_32x4d seresnext50_32x4d seresnext101_32x4d seresnext101_32x8d",
        "seresnext101_64x4d seresnext101d_32x8d seresnetaa50d seresnextaa101d_32x8d seresnextaa201d_32x8d",
        "senet154 ecaresnet26t ecaresnet50d ecaresnet50t ecaresnet101d ecaresnet200d ecaresnet269d",
        "ecaresnetlight ecaresnext26t_32x4d ecaresnext50t_32x4d",
        "skresnet18 skresnet34 skresnet50 skresnet50d skresnext50_32x4d resnet50_gn",
    )
).split()
_ONLY_BY_NAME = ("aa_layer",)  # timm's stem expects a class there
_SHOWN = ("num_classes", "se_bias", "bn_epsilon")  # an option of its own; the same in all of timm's networks
# attention options of timm's networks, which no argument changes
_ATTENTION: dict[str, dict[str, Any]] = {
    "none": {},
    "se": {"hidden_rule": "multiple_of_8"},
    "cbam": {"hidden_rule": "floor", "cbam_mlp_bias": False, "cbam_order": "mean_max"},
    "eca": {},
    "sk": {},
}


def arguments_of(spec: ResNetSpec) -> tuple[str, dict[str, Any]]:
    """The name of a timm network, and the arguments that make it the one of a spec.

    >>> se = {"attention": "se", "hidden_rule": "multiple_of_8"}
    >>> arguments_of(ResNetSpec(depths=(2, 2, 2, 2), block="basic", activation="silu", **se))
    ('seresnet18', {'act_layer': 'silu'})

    Raises:
        MismatchError: timm has no such network.
    """
    found = [
        (name, arguments)
        for name in _NAMES
        if (arguments := _arguments(spec, _network(spec, name))) is not None
    ]
    if not found:
        raise MismatchError(f"timm has no arguments for this network: {_problem(spec)}")
    return min(found, key=lambda pair: len(pair[1]))


def _network(spec: ResNetSpec, name: str) -> ResNetSpec:
    keywords = dict(keywords_of(name) or {})
    attention = keywords.get("attention", "none")
    of_head = {"num_classes": spec.num_classes, "head_bias": True}
    return ResNetSpec(**(_ATTENTION[attention] | keywords | of_head))


def _arguments(spec: ResNetSpec, network: ResNetSpec) -> dict[str, Any] | None:
    """The arguments that turn one network of timm into another; None if there are none."""
    ours, theirs = _keywords(spec), _keywords(network)
    if "sk" in (spec.attention, network.attention) and spec.attention != network.attention:
        return None  # selective kernels have blocks of their own
    if network.attention == "none" and spec.attention != "none":
        theirs |= {"attention": spec.attention} | _ATTENTION[spec.attention]
    arguments = dict(_of_keywords(ours, theirs))
    if theirs["attention"] != network.attention:
        arguments["block_args"] = {"attn_layer": spec.attention}
    reached = theirs | {keyword: ours[keyword] for keyword in _reached(arguments, ours)}
    try:
        same = ResNetSpec(**reached)
    except SpecError:  # such as a basic block with groups
        return None
    matter = [k for k in ours if spec.matters_unseen(k) and k not in (*TRAINING_ONLY, *_SHOWN)]
    if parameters(same) != parameters(changed(spec, {"head_bias": True})):
        return None
    return arguments if all(getattr(same, k) == getattr(spec, k) for k in matter) else None


def _keywords(spec: ResNetSpec) -> dict[str, Any]:
    """The keywords, with None for strides and dilations as usual for so many stages."""
    plain = ResNetSpec(block=spec.block, depths=spec.depths)
    usual = {k for k in ("strides", "dilations") if getattr(spec, k) == getattr(plain, k)}
    return {keyword: None if keyword in usual else value for keyword, value in spec.model_kwargs().items()}


def _of_keywords(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments for keywords that differ and that have one."""
    for argument, keyword in SAME.items():
        if ours[keyword] != theirs[keyword]:
            yield argument, list(ours[keyword]) if isinstance(ours[keyword], tuple) else ours[keyword]
    if ours["width"] != theirs["width"]:
        yield "channels", [ours["width"] * 2**stage for stage in range(len(ours["depths"]))]
    for argument, values in VALUES.items():
        keywords = {keyword for of in values.values() for keyword in of}
        if any(ours[keyword] != theirs[keyword] for keyword in keywords):
            wanted = {keyword: ours[keyword] for keyword in keywords}
            fitting = (v for v, of in values.items() if of and all(wanted[k] == of[k] for k in of))
            value = next(fitting, None)
            if value is not None and argument not in _ONLY_BY_NAME:
                yield argument, value


def _reached(arguments: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The keywords that these arguments set."""
    keywords = [SAME[argument] for argument in arguments if argument in SAME]
    keywords += ["width"] if "channels" in arguments else []
    for argument, value in arguments.items():
        if argument in VALUES:
            keywords += VALUES[argument][value]
    return [keyword for keyword in keywords if keyword in ours]


def _problem(spec: ResNetSpec) -> str:
    """A keyword that timm's networks do not have, for the message."""
    plain = ResNetSpec(**({"block": spec.block, "depths": spec.depths} | _ATTENTION[spec.attention]))
    known = {*SAME.values(), "width", "attention", "num_classes", *TRAINING_ONLY}
    known |= {keyword for values in VALUES.values() for of in values.values() for keyword in of}
    ours, theirs = spec.model_kwargs(), plain.model_kwargs()
    other = [f"{k}={ours[k]!r}" for k in ours if ours[k] != theirs[k] and k not in known and spec.concerns(k)]
    stem = [f"stem={spec.stem!r}"] if spec.stem == "3x3" else []
    return ", ".join([*stem, *other]) or "a combination of keywords"
