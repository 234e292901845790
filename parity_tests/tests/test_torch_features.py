"""Feature maps of PyTorch networks: `feature_info`, torch.fx, torchvision's extractors; and wrong images."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert.spec import MobileNetSpec, ShuffleNetSpec, VGGSpec

VGG = {
    "depths": (1, 2),
    "widths": (8, 16),
    "head_width": 16,
    "pool_size": 2,
    "num_classes": 5,
    "reduction": 4,
}
SPECS = {
    "plain": tiny(),
    "se": tiny(attention="se", block="basic", stem="3x3"),
    "cbam": tiny(attention="cbam", groups=4, width_per_group=32),
    "eca": tiny(attention="eca", downsample_pool="avg"),
    "deep": tiny(stem="deep", stem_pool="same"),
    "pooling convolution": tiny(
        stem="deep_tiered", stem_pool="conv", anti_aliasing="blur", activation="silu"
    ),
    "blur": tiny(stem_pool="pad1", anti_aliasing="blur"),
    "dilated": tiny(strides=(1, 1), dilations=(1, 2), num_classes=0),
    "shufflenet": ShuffleNetSpec(depths=(1, 2), widths=(12, 24), stem_width=6, num_classes=5, attention="se"),
    "mobilenet": MobileNetSpec(
        depths=(1, 2), widths=(8, 12), stem_width=8, num_classes=5, attention="se", stride_padding="keras"
    ),
    "vgg": VGGSpec(**VGG),
    "vgg with attention": VGGSpec(**VGG, attention="cbam"),
}


@pytest.fixture(params=SPECS)
def model(request) -> Any:
    spec = SPECS[request.param]
    return getattr(torch_impl, spec.network)(**spec.model_kwargs()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 33, 40)


def outputs_by_hooks(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def record(name: str, y: Tensor) -> None:
        found[name] = y.clone()  # the next layer may work in place

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: record(name, y))
        for name in names
    ]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.quick
def test_feature_info_names_modules_and_describes_their_outputs(model, images):
    info = model.feature_info
    found = outputs_by_hooks(model, [stage["module"] for stage in info], images)
    for stage in info:
        _, channels, height, _ = found[stage["module"]].shape
        assert channels == stage["num_chs"]
        assert height in (33 // stage["reduction"], -(-33 // stage["reduction"]))
    assert all(before["reduction"] <= after["reduction"] for before, after in pairwise(info))
    stages = [name for name in model.forward_features(images) if name not in ("pooled", "logits")]
    pools = isinstance(model, (torch_impl.VGG, torch_impl.ShuffleNet))  # the map before the first pool too
    assert len(info) == len(stages) + pools


TIMM = {  # `feature_info` of timm 1.0's model of the same name
    "se_resnet50": [(64, 2, "act1"), (256, 4, "layer1"), (512, 8, "layer2"), (1024, 16, "layer3"),
                    (2048, 32, "layer4")],
    "vgg16_bn": [(64, 1, "features.5"), (128, 2, "features.12"), (256, 4, "features.22"),
                 (512, 8, "features.32"), (512, 16, "features.42"), (512, 32, "features.43")],
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_feature_info_is_timms(name):
    with torch.device("meta"):
        info = torch_impl.create_model(name).feature_info
    assert [tuple(stage.values()) for stage in info] == TIMM[name]
    assert {tuple(stage) for stage in info} == {("num_chs", "reduction", "module")}


@pytest.mark.quick
def test_symbolic_trace(model, images):
    """The graph of `torch.fx`, from which torchvision's `create_feature_extractor` cuts a network."""
    traced = torch.fx.symbolic_trace(model)
    with torch.inference_mode():
        for x in (images, images[:1, :, :30, :31]):
            assert torch.equal(traced(x), model(x))
    inside = {
        path for node in traced.graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()
    }
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {stage["module"] for stage in model.feature_info} <= inside | called


def test_the_modules_of_a_network_run_one_after_the_other(images):
    """As torchvision's `IntermediateLayerGetter` runs them, which loses functions between them."""
    for name, spec in SPECS.items():
        model: Any = getattr(torch_impl, spec.network)(**spec.model_kwargs()).eval()
        if isinstance(model, torch_impl.VGG):
            layers, ends = model.features, [f"stage{n}" for n, _ in enumerate(spec.depths, 1)]
            of = dict(zip(ends, [str(end - 1) for end in model.stage_ends], strict=True))
        else:
            layers, of = model, {end: end for end in model.stage_names}
        with torch.inference_mode():
            wanted, x, got = model.forward_features(images), images, {}
            for child, layer in layers.named_children():
                got[child] = x = layer(x)
                if child == list(of.values())[-1]:
                    break
            for end, child in of.items():
                assert torch.equal(got[child], wanted[end]), (name, end)


def test_torchvisions_extractors_and_detectors(images):
    reason = "torchvision is no dependency; `test_symbolic_trace` and the test above need none"
    pytest.importorskip("torchvision", reason=reason)
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.feature_extraction import create_feature_extractor

    for name, spec in SPECS.items():
        model = getattr(torch_impl, spec.network)(**spec.model_kwargs()).eval()
        info = model.feature_info
        nodes = {stage["module"]: stage["module"] for stage in info[1:]}
        wanted = outputs_by_hooks(model, list(nodes), images)
        got = create_feature_extractor(model, nodes)(images)
        assert all(torch.allclose(got[node], wanted[node]) for node in nodes), name
        if spec.kind == "resnet":
            stages = {stage: stage for stage in model.stage_names}
            features = IntermediateLayerGetter(model, stages)(images)
            assert all(torch.equal(features[stage], wanted[stage]) for stage in stages), name
            channels = [stage["num_chs"] for stage in info[1:]]
            maps = BackboneWithFPN(model, stages, channels, 8)(images)
            assert {maps[stage].shape[1] for stage in stages} == {8}


WRONG = {
    "uint8": (torch.zeros(2, 3, 33, 40, dtype=torch.uint8), "images of dtype uint8, expected floats"),
    "int64": (torch.zeros(2, 3, 33, 40, dtype=torch.int64), "images of dtype int64, expected floats"),
    "channels last": (
        torch.zeros(2, 33, 40, 3),
        r"shape \(2, 33, 40, 3\), expected \(N, 3, H, W\); permute \(N, H, W, C\) with \(0, 3, 1, 2\)$",
    ),
    "grey": (torch.zeros(2, 1, 33, 40), r"images of shape \(2, 1, 33, 40\), expected \(N, 3, H, W\)$"),
    "one image": (torch.zeros(3, 33, 40), r"images of shape \(3, 33, 40\), expected \(N, 3, H, W\)$"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", WRONG)
def test_wrong_images_are_refused(model, case):
    x, message = WRONG[case]
    for call in (model, model.forward_features):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_a_replaced_first_convolution_says_what_it_expects(images):
    model = torch_impl.se_resnet20()
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1)
    assert model(images[:, :1]).shape == (2, 10)
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\)"):
        model(torch.zeros(2, 2, 33, 40))
    model.conv1 = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1))  # any other module decides itself
    assert model(images[:, :2]).shape == (2, 10)
