"""The named models: a network with other defaults. Each accepts all keywords of the network.

`torch_impl`, `keras_impl` and `tf1_compat` have the same file.
"""

from .inception import network as _inception
from .inception_v3 import network as _inception_v3
from .mobilenet import network as _mobilenet
from .named import with_defaults as _with_defaults
from .resnet import network as _network
from .shufflenet import network as _shufflenet
from .vgg import network as _vgg

_R18 = {"block": "basic", "depths": (2, 2, 2, 2)}
_R34 = {"block": "basic", "depths": (3, 4, 6, 3)}
_R50 = {"block": "bottleneck", "depths": (3, 4, 6, 3)}
_R101 = {"block": "bottleneck", "depths": (3, 4, 23, 3)}
_R152 = {"block": "bottleneck", "depths": (3, 8, 36, 3)}
_32X4D = {"groups": 32, "width_per_group": 4}
_SK18 = {"attention": "sk", "sk_split": True, "reduction": 8, "sk_min_hidden": 16}
_SK50 = {"attention": "sk", "sk_split": True, "sk_min_hidden": 8}
_CIFAR = {"block": "basic", "width": 16, "stem": "3x3", "stem_width": 16, "num_classes": 10}

resnet18 = _with_defaults(_network, "resnet18", **_R18)
resnet34 = _with_defaults(_network, "resnet34", **_R34)
resnet50 = _with_defaults(_network, "resnet50", **_R50)
resnet101 = _with_defaults(_network, "resnet101", **_R101)
resnet152 = _with_defaults(_network, "resnet152", **_R152)
resnext50_32x4d = _with_defaults(_network, "resnext50_32x4d", **_R50, **_32X4D)
resnext101_32x4d = _with_defaults(_network, "resnext101_32x4d", **_R101, **_32X4D)
resnet20 = _with_defaults(_network, "resnet20", **_CIFAR, depths=(3, 3, 3))
resnet32 = _with_defaults(_network, "resnet32", **_CIFAR, depths=(5, 5, 5))
resnet56 = _with_defaults(_network, "resnet56", **_CIFAR, depths=(9, 9, 9))
se_resnet18 = _with_defaults(_network, "se_resnet18", **_R18, attention="se")
se_resnet34 = _with_defaults(_network, "se_resnet34", **_R34, attention="se")
se_resnet50 = _with_defaults(_network, "se_resnet50", **_R50, attention="se")
se_resnet101 = _with_defaults(_network, "se_resnet101", **_R101, attention="se")
se_resnet152 = _with_defaults(_network, "se_resnet152", **_R152, attention="se")
se_resnext50_32x4d = _with_defaults(_network, "se_resnext50_32x4d", **_R50, **_32X4D, attention="se")
se_resnext101_32x4d = _with_defaults(_network, "se_resnext101_32x4d", **_R101, **_32X4D, attention="se")
senet154 = _with_defaults(
    _network,
    "senet154",
    **_R152,
    groups=64,
    width_per_group=4,
    reduce_first=2,
    stem="deep",
    downsample_kernel=3,
    attention="se",
    dropout=0.2,
)
se_resnet20 = _with_defaults(_network, "se_resnet20", **_CIFAR, depths=(3, 3, 3), attention="se")
se_resnet32 = _with_defaults(_network, "se_resnet32", **_CIFAR, depths=(5, 5, 5), attention="se")
se_resnet56 = _with_defaults(_network, "se_resnet56", **_CIFAR, depths=(9, 9, 9), attention="se")
cbam_resnet18 = _with_defaults(_network, "cbam_resnet18", **_R18, attention="cbam")
cbam_resnet34 = _with_defaults(_network, "cbam_resnet34", **_R34, attention="cbam")
cbam_resnet50 = _with_defaults(_network, "cbam_resnet50", **_R50, attention="cbam")
cbam_resnet101 = _with_defaults(_network, "cbam_resnet101", **_R101, attention="cbam")
cbam_resnet152 = _with_defaults(_network, "cbam_resnet152", **_R152, attention="cbam")
cbam_resnet20 = _with_defaults(_network, "cbam_resnet20", **_CIFAR, depths=(3, 3, 3), attention="cbam")
cbam_resnet32 = _with_defaults(_network, "cbam_resnet32", **_CIFAR, depths=(5, 5, 5), attention="cbam")
cbam_resnet56 = _with_defaults(_network, "cbam_resnet56", **_CIFAR, depths=(9, 9, 9), attention="cbam")
eca_resnet18 = _with_defaults(_network, "eca_resnet18", **_R18, attention="eca")
eca_resnet34 = _with_defaults(_network, "eca_resnet34", **_R34, attention="eca")
eca_resnet50 = _with_defaults(_network, "eca_resnet50", **_R50, attention="eca")
eca_resnet101 = _with_defaults(_network, "eca_resnet101", **_R101, attention="eca")
eca_resnet152 = _with_defaults(_network, "eca_resnet152", **_R152, attention="eca")
eca_resnet20 = _with_defaults(_network, "eca_resnet20", **_CIFAR, depths=(3, 3, 3), attention="eca")
eca_resnet32 = _with_defaults(_network, "eca_resnet32", **_CIFAR, depths=(5, 5, 5), attention="eca")
eca_resnet56 = _with_defaults(_network, "eca_resnet56", **_CIFAR, depths=(9, 9, 9), attention="eca")
sk_resnet18 = _with_defaults(_network, "sk_resnet18", **_R18, **_SK18)
sk_resnet34 = _with_defaults(_network, "sk_resnet34", **_R34, **_SK18)
sk_resnet50 = _with_defaults(_network, "sk_resnet50", **_R50, **_SK50)
sk_resnext50_32x4d = _with_defaults(_network, "sk_resnext50_32x4d", **_R50, **_32X4D, attention="sk")
vgg16_bn = _with_defaults(_vgg, "vgg16_bn")
se_vgg16_bn = _with_defaults(_vgg, "se_vgg16_bn", attention="se")
bn_inception = _with_defaults(_inception, "bn_inception")
se_bn_inception = _with_defaults(_inception, "se_bn_inception", attention="se")
inception_v3 = _with_defaults(_inception_v3, "inception_v3")
se_inception_v3 = _with_defaults(_inception_v3, "se_inception_v3", attention="se")
mobilenet_v1 = _with_defaults(_mobilenet, "mobilenet_v1")
se_mobilenet_v1 = _with_defaults(_mobilenet, "se_mobilenet_v1", attention="se")
shufflenet_v1_g3 = _with_defaults(_shufflenet, "shufflenet_v1_g3")
se_shufflenet_v1_g3 = _with_defaults(_shufflenet, "se_shufflenet_v1_g3", attention="se")
