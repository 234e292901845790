"""Other projects' ShuffleNetV1: their files give their outputs here, and ours give our outputs there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity_tests.judge.tolerances import relative_error
from parity_tests.tests.test_mobilenet_families import run, with_statistics
from weights_convert import MismatchError, convert, load, load_model


class MegviiUnit(nn.Module):
    """A unit with the names and the operations of ShuffleNetV1/blocks.py, which no package installs."""

    def __init__(self, inputs: int, outputs: int, first: bool, stride: int):
        super().__init__()
        self.stride, inner = stride, outputs // 4
        branch = outputs - inputs if stride == 2 else outputs
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, groups=1 if first else 3, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(inner, branch, 1, groups=3, bias=False), nn.BatchNorm2d(branch)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_main_1(x)
        n, channels, rows, columns = y.shape
        y = y.reshape(n, channels // 3, 3, rows, columns).permute(0, 2, 1, 3, 4)
        y = self.branch_main_2(y.reshape(n, channels, rows, columns))
        if self.stride == 1:
            return F.relu(y + x)
        return torch.cat((F.avg_pool2d(x, 3, 2, 1), F.relu(y)), 1)


class Megvii(nn.Module):
    """ShuffleNetV1/network.py, 1.0x with three groups; its pool of 7 x 7 is a mean here."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        units, inputs = [], 24
        for repeats, width in ((4, 240), (8, 480), (4, 960)):
            for index in range(repeats):
                units.append(MegviiUnit(inputs, width, not units, 1 if index else 2))
                inputs = width
        self.features = nn.Sequential(*units)
        self.classifier = nn.Sequential(nn.Linear(960, 7, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(F.max_pool2d(self.first_conv(x), 3, 2, 1))
        return self.classifier(x.mean((2, 3)))


def megvii() -> nn.Module:
    return with_statistics(Megvii())


def pytorchcv() -> nn.Module:
    module = pytest.importorskip("pytorchcv.models.shufflenet")
    return with_statistics(module.shufflenet_g3_w1(num_classes=7))


PEERS: dict[str, Callable[[], nn.Module]] = {"pytorchcv_shufflenet": pytorchcv, "megvii_shufflenet": megvii}


@pytest.mark.parametrize("family", PEERS)
def test_pytorch_files_are_read_and_written(tmp_path, family):
    theirs = PEERS[family]()
    state = theirs.state_dict()
    if family == "megvii_shufflenet":  # as its train.py saves a model in nn.DataParallel
        state = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(state, tmp_path / "a.pth")
    wanted = run(theirs)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01 * np.abs(wanted).max()
    with load(tmp_path / "a.pth") as checkpoint:
        assert (checkpoint.family, checkpoint.assumed) == (family, ())
        assert checkpoint.spec.head_bias == (family == "pytorchcv_shufflenet")
    assert relative_error(run(load_model(tmp_path / "a.pth")), wanted) < 1e-13
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.pth", to_family=family)
    again = PEERS[family]()
    again.load_state_dict(torch.load(tmp_path / "b.pth"))
    np.testing.assert_array_equal(run(again), wanted)


def test_a_family_writes_only_its_own_numbers(tmp_path):
    """A network with the authors' shuffle has no file of pytorchcv, whose names could hold it."""
    torch.save(megvii().state_dict(), tmp_path / "a.pth")
    with pytest.raises(MismatchError, match="shuffle_after"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth", to_family="pytorchcv_shufflenet")
