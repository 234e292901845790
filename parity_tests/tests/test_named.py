"""Finding models by name, and the errors for names that do not exist, in the three frameworks."""

from __future__ import annotations

import pytest
import tensorflow.compat.v1 as tf

import keras_impl
import tf1_compat
import torch_impl
import weights_convert
from parity_tests.__main__ import main as parity_main
from weights_convert.__main__ import main as convert_main
from weights_convert.spec import MODELS

ROOMS = [torch_impl, keras_impl, tf1_compat]
pytestmark = pytest.mark.quick


@pytest.mark.parametrize("room", ROOMS)
def test_models_are_listed(room):
    assert room.list_models() == sorted(MODELS)
    assert room.list_models("se_resnet5?") == ["se_resnet50", "se_resnet56"]
    assert room.list_models("vit*") == []
    assert {"create_model", "list_models"} <= set(room.__all__)


def test_a_model_is_created_by_its_name():
    model = torch_impl.create_model("se_resnet20", num_classes=4)
    assert (model.config["attention"], model.fc.out_features) == ("se", 4)
    assert keras_impl.create_model("eca_resnet20", dtype="float64").name == "eca_resnet20"
    with tf.Graph().as_default():
        logits, _ = tf1_compat.create_model("resnet20", tf.zeros((1, 8, 8, 3)), num_classes=3)
    assert logits.shape == (1, 3)


@pytest.mark.parametrize("room", ROOMS)
def test_wrong_names_offer_the_nearest(room):
    with pytest.raises(ValueError, match=r"there is no model 'seresnet50'; did you mean 'se_resnet50'\?"):
        room.create_model("seresnet50")
    for keyword, nearest in (("in_chans", "in_channels"), ("classes", "num_classes"), ("drop", "dropout")):
        with pytest.raises(TypeError, match=rf"\(\) has no keyword '{keyword}'; did you mean '{nearest}'"):
            room.se_resnet50(**{keyword: 1})
    with pytest.raises(TypeError, match=r"resnet18\(\) has no keyword 'zzz'$"):
        room.resnet18(zzz=1)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("keyword", ["pretrained", "weights", "include_top"])
def test_weights_do_not_come_from_a_constructor(room, keyword):
    with pytest.raises(TypeError, match=r"only makes random weights; load a checkpoint with weights_convert"):
        room.vgg16_bn(**{keyword: True})


@pytest.mark.parametrize("main", [convert_main, parity_main])
def test_the_commands_have_a_version(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split()[1] == weights_convert.__version__
