"""A stranger's mypy checks the keywords of the named constructors, in the three frameworks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CODE = """\
import keras_impl
import tf1_compat
import torch_impl

images = None
torch_impl.se_resnet50(num_classes="x")  # error: "num_classes" has incompatible type "str"; expected "int"
keras_impl.se_resnet50(num_classes="x")  # error: "num_classes" has incompatible type "str"; expected "int"
tf1_compat.se_resnet50(images, num_classes="x")  # error: "num_classes" has incompatible type "str"
torch_impl.se_resnet50(classes=4)  # error: Unexpected keyword argument "classes"; did you mean "num_classes"?
tf1_compat.se_resnet50(images, classes=4)  # error: Unexpected keyword argument "classes"
torch_impl.vgg16_bn(head_bias=0.5)  # error: "head_bias" has incompatible type "float"; expected "bool"
torch_impl.se_resnet50().reset_classifier("4")  # error: "reset_classifier" of "Network" has incompatible type
torch_impl.se_resnet50(num_classes=4).set_grad_checkpointing()
keras_impl.se_resnet50(num_classes=4, dtype="float64")
logits, end_points = tf1_compat.se_resnet50(images, is_training=True, num_classes=4)
reveal_type(torch_impl.vgg16_bn())  # note: Revealed type is "torch_impl.vgg.VGG"
reveal_type(keras_impl.se_resnet50())  # note: Revealed type is "keras_impl.resnet.ResNet"
reveal_type(end_points)  # note: Revealed type is "dict[str, Any]"
"""
SETTINGS = """\
[mypy]
[mypy-torch.*,keras.*,tensorflow.*,numpy.*]  # which takes mypy a minute to read
follow_imports = skip
ignore_missing_imports = True
"""


def test_a_strangers_mypy_finds_wrong_keywords(tmp_path):
    (tmp_path / "theirs.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", os.devnull, "theirs.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},  # installed: `py.typed` is needed
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(re.findall(r"^theirs\.py:(\d+): (.*)$", done.stdout, re.MULTILINE))
    for number, line in enumerate(CODE.splitlines(), 1):
        wanted = line.partition("  # ")[2]
        said = found.pop(str(number), "")
        if not wanted:
            assert said == "", line
        kind, _, words = wanted.partition(": ")
        assert said.startswith(kind), done.stdout
        assert words in said, done.stdout
    assert found == {}, done.stdout
