"""SE, CBAM, ECA and SK attention and the networks built on them, as graphs on tensorflow.compat.v1."""

from . import import_order, models  # noqa: F401  (before any other import)
from .attention import cbam, channel_attention, eca, spatial_attention, squeeze_excitation
from .blocks import basic_block, bottleneck
from .inception import inception
from .inception_v3 import inceptionv3
from .inference import optimize_for_inference
from .mobilenet import mobilenet
from .models import *  # noqa: F403  (each name is a model)
from .named import create_model, list_models
from .resnet import resnet
from .selective import selective_kernel
from .shufflenet import shufflenet
from .vgg import vgg

__all__ = [
    "basic_block",
    "bottleneck",
    "cbam",
    "channel_attention",
    "create_model",
    "eca",
    "inception",
    "inceptionv3",
    "list_models",
    "mobilenet",
    "optimize_for_inference",
    "resnet",
    "selective_kernel",
    "shufflenet",
    "spatial_attention",
    "squeeze_excitation",
    "vgg",
]
__all__ += [name for name in vars(models) if not name.startswith("_")]
