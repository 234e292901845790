"""SE, CBAM, ECA and SK attention and the networks built on them, in Keras 3."""

from . import import_order, models  # noqa: F401  (before any other import)
from .attention import CBAM, ECA, ChannelAttention, SpatialAttention, SqueezeExcitation
from .blocks import BasicBlock, Bottleneck
from .inception import Inception
from .inception_v3 import InceptionV3
from .inference import optimize_for_inference
from .mobilenet import MobileNet
from .models import *  # noqa: F403  (each name is a model)
from .named import create_model, list_models
from .preprocessing import Preprocessing
from .resnet import ResNet
from .selective import SelectiveKernel
from .shufflenet import ShuffleNet
from .vgg import VGG

__all__ = [
    "CBAM",
    "ECA",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "ChannelAttention",
    "Inception",
    "InceptionV3",
    "MobileNet",
    "Preprocessing",
    "ResNet",
    "SelectiveKernel",
    "ShuffleNet",
    "SpatialAttention",
    "SqueezeExcitation",
    "create_model",
    "list_models",
    "optimize_for_inference",
]
__all__ += [name for name in vars(models) if not name.startswith("_")]
