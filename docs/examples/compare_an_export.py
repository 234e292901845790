"""An ONNX file with one mistake: the harness names the layer, here at the end of a fused pair."""

import io
import warnings

import numpy as np
import onnx
import torch

from parity_tests.compare import Callable, compare_models

torch.manual_seed(0)
layers = {"stem": torch.nn.Conv2d(3, 8, 3), "norm": torch.nn.BatchNorm2d(8), "head": torch.nn.Conv2d(8, 4, 1)}
model = torch.nn.Sequential()
for name, layer in layers.items():
    model.add_module(name, layer)
model.eval()
images = np.random.default_rng(0).normal(size=(2, 3, 16, 16))

file = io.BytesIO()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the exporter through TorchScript is deprecated
    torch.onnx.export(model, (torch.zeros(2, 3, 16, 16),), file, dynamo=False)
exported = onnx.load_from_string(file.getvalue())  # or the path of a file

report = compare_models(model, exported, images)
print("right:", "parity holds" if report.holds else report.why_not())
for tensor in exported.graph.initializer:
    if tensor.dims == [8, 3, 3, 3]:  # the kernel of `stem`, in which the exporter folded `norm`
        kernel = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(kernel, tensor.name))
report = compare_models(model, exported, images)
print("wrong:", report.culprits())
report = compare_models(model, Callable(lambda x: model(torch.tensor(x)), layout="nchw"), images)
print("a function:", report.extent)
