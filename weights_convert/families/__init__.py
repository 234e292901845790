"""The families: supported origins of checkpoints, one data file each."""

from __future__ import annotations

from weights_convert.families import (
    cadene,
    cadene_inception,
    cbam,
    eca,
    hikapok,
    inceptions_v3,
    keras_applications,
    keras_hub,
    kobiso,
    luuuyi,
    mmpretrain,
    mobilenets,
    moskomule,
    own,
    pytorchcv,
    pytorchcv_inception,
    qubvel,
    senet,
    shufflenets,
    tensorflowcv,
    timm,
    torchvision,
    transformers,
    tutorial_cbam,
)
from weights_convert.families.base import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *own.FAMILIES,
        torchvision.FAMILY,
        timm.FAMILY,
        cadene.FAMILY,
        moskomule.FAMILY,
        cbam.FAMILY,
        eca.FAMILY,
        luuuyi.FAMILY,
        mmpretrain.FAMILY,
        transformers.FAMILY,
        pytorchcv.FAMILY,
        tensorflowcv.FAMILY,
        hikapok.FAMILY,
        kobiso.FAMILY,
        tutorial_cbam.FAMILY,
        qubvel.FAMILY,
        keras_applications.FAMILY,
        keras_hub.FAMILY,
        cadene_inception.FAMILY,
        pytorchcv_inception.FAMILY,
        *inceptions_v3.FAMILIES,
        *mobilenets.FAMILIES,
        *shufflenets.FAMILIES,
        *senet.FAMILIES,
    )
}
