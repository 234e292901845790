"""The second day of a user: seven tasks in one script of public names, run in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import keras, numpy as np, tensorflow as tf, torch
from torch import nn
import keras_impl, tf1_compat, torch_impl
from weights_convert import convert, load, load_into, load_model, save, state_of

images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
nhwc = images.transpose(0, 2, 3, 1)

def close(a, b, limit=1e-4):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and np.abs(a - b).max() <= limit * np.abs(b).max(), np.abs(a - b).max()

torch.manual_seed(0)
net = torch_impl.se_resnet20().eval()
with torch.no_grad():
    wanted = net.forward_features(torch.from_numpy(images))
save(state_of(net), "net.pth")

# 1. wrapped: the network inside a Sequential is found
inner = load_model("net.pth", "keras")
wrapped = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1.0), inner])
wrapped.save("wrapped.keras")
convert("wrapped.keras", "unwrapped.pth")
with torch.no_grad():
    close(load_model("unwrapped.pth")(torch.from_numpy(images)), wanted["logits"])
print("wrapped")

# 2. headless: pooled features in another framework
torch.save({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, "headless.pth")
close(load_model("headless.pth", "keras", assume=True)(nhwc), wanted["pooled"])
print("headless")

# 3. a new head of another size
new = load_model("net.pth", "keras", num_classes=4)
assert new(nhwc).shape == (2, 4)
close(new.forward_features(nhwc)["pooled"], wanted["pooled"])
print("new head")

# 4. a replaced head is read as it is
net.fc = nn.Linear(net.num_features, 3)
save(state_of(net), "replaced.weights.h5")
with torch.no_grad():
    close(load_model("replaced.weights.h5", "keras")(nhwc), net(torch.from_numpy(images)))
print("replaced head")

# 5. functional features are saved, loaded and converted
inputs = keras.Input((32, 32, 3))
features = keras.Model(inputs, inner.forward_features(inputs)["layer3"])
features.save("features.keras")
close(keras.models.load_model("features.keras")(nhwc), wanted["layer3"].numpy().transpose(0, 2, 3, 1))
with load("features.keras") as part:
    assert part["layer3.2.conv2.weight"].tobytes() == load("net.pth")["layer3.2.conv2.weight"].tobytes()
print("functional")

# 6. exported: a SavedModel and an ExportedProgram
inner.export("exported", verbose=False)
served = tf.saved_model.load("exported")
close(served.serve(nhwc), wanted["logits"])
program = torch.export.export(load_model("net.pth"), (torch.from_numpy(images),))
with torch.no_grad():
    close(program.module()(torch.from_numpy(images)), wanted["logits"])
print("exported")

# 7. tf.function is refused in one sentence; wrap_function runs the TF1 function
network = load_model("net.pth", "tf1")
try:
    tf.function(lambda x: network(x)[0])(nhwc)
except RuntimeError as error:
    assert "tf.compat.v1.wrap_function" in str(error) and len(str(error).splitlines()) == 1
wrapped = tf.compat.v1.wrap_function(lambda x: network(x)[0], [tf.TensorSpec((None, 32, 32, 3))])
close(wrapped(tf.constant(nhwc)), wanted["logits"])
print("tf.function")
"""


def test_the_second_day(tmp_path: Path):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    done = "wrapped, headless, new head, replaced head, functional, exported, tf.function"
    assert ", ".join(ran.stdout.split("\n")[:-1]) == done, ran.stderr[-2000:]
