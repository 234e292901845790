"""The command line: its output, its exit codes, and a one-line error for every wrong usage."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge.synthetic import arrays_with, position_coded, tiny
from weights_convert import MODELS, load, save
from weights_convert.families import FAMILIES

pytestmark = pytest.mark.usefixtures("folder")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")


LONG = "x" * 300
BAD = [  # arguments after `convert`, and the expected error
    ("god.pth x.npz", r"god\.pth: there is no such file; did you mean 'good\.pth'\?"),
    ("folder/none.pth x.npz", r"none\.pth: there is no such file$"),
    ("good.pth/x x.npz", r"good\.pth/x: (there is no such file|cannot be read \(Not a directory\))"),
    ("folder x.npz", r"folder: a folder without weights \(it has nothing\), expected a TF1 checkpoint, "),
    ("empty.pth x.npz", r"empty\.pth: the file is empty"),
    ("/dev/null x.npz", r"/dev/null: is a device or a pipe, expected a file"),
    ("text.pth x.npz", r"text\.pth: not a known checkpoint format \(it begins with b'these ar'\)"),
    (f"{LONG}.pth x.npz", r"cannot be read \(File name too long\)"),
    (f"good.pth {LONG}.npz", r"cannot be written \(File name too long\)"),
    ("good.pth x.foo", r"x\.foo: unknown suffix, expected one of \.pth, \.pt, \.safetensors"),
    ("good.pth x.h5", r"x\.h5: unknown suffix, expected one of"),
    ("good.pth x", r"x: unknown suffix, expected one of"),
    ("good.pth good.npz", r"good\.npz: exists already; --overwrite \(in Python overwrite=True\) replaces it"),
    ("good.pth good.pth", r"good\.pth: exists already"),
    ("good.pth good.ckpt", r"good\.ckpt\.data-00000-of-00001: exists already"),
    ("good.pth good.npz --dry-run", r"good\.npz: exists already"),
    ("good.pth none/x.npz", r"none/x\.npz: the folder 'none' does not exist"),
    ("good.pth good.npz/x.npz", r"the folder 'good\.npz' does not exist"),
    ("good.pth folder.npz --overwrite", r"folder\.npz: is a directory, expected a file name"),
    ("good.pth x.npz --model se_resnet5x", r"there is no model 'se_resnet5x'; did you mean 'se_resnet5\d'\?"),
    ("good.pth x.npz --set wdth=3", r"there is no keyword 'wdth'; did you mean 'width'\?"),
    ("good.pth x.npz --set width", r"'width': expected KEY=VALUE, such as stride_in=conv1"),
    ("good.pth x.npz --set width=big", r"width='big': expected an int of at least 1"),
    ("good.pth x.npz --set width=0", r"width=0: expected an int"),
    ("good.pth x.npz --set se_bias=1", r"se_bias=1: expected one of True, False"),
    ("good.pth x.npz --set stride_in=conv3", r"stride_in='conv3': expected one of 'conv2', 'conv1'"),
    ("good.pth x.npz --set bn_epsilon=1e999", r"bn_epsilon=inf: expected a finite float"),
    ("good.pth x.npz --set eca_kernel_sizes=3", r"eca_kernel_sizes=3: expected a sequence of ints"),
    ("good.pth x.npz --set cbam_kernel_size=(3,3)", r"cbam_kernel_size=\(3, 3\): expected an odd int"),
    ("good.pth x.npz --set depths=1,999999999", r"depths=\(1, 999999999\): expected 1 to 8 stages"),
    ("good.pth x.npz --set depths={[]:1}", r"depths='\{\[\]:1\}': expected a sequence of ints"),
    ("good.pth x.npz --set =3", r"there is no keyword ''"),
    ("good.pth x.npz --dtype float8", r"there is no dtype 'float8'; did you mean 'float\d\d'\?; known:"),
    ("good.pth x.npz --dtype int64", r"there is no dtype 'int64'"),
    ("good.pth x.npz --dtype bfloat16", r"is bfloat16, which \.npz cannot hold; use another container"),
    ("good.pth x.npz --from kers", r"there is no family 'kers'; did you mean 'keras'\?; known: torch, keras"),
    ("good.pth x.npz --to kers", r"there is no family 'kers'; did you mean 'keras'\?"),
    ("good.pth x.npz --from timm", r"its tensors do not match timm's resnet; mismatches: 2"),
    ("good.pth x.npz --from timmm", r"there is no family 'timmm'; did you mean 'timm'\?"),
    ("good.pth x.npz --to cadene", r"cadene's networks are not an unnamed resnet; 1 keywords differ"),
    ("good.pth x.npz --to qubvel", r"the family 'qubvel' can only be read; expected one of torch, keras"),
    ("good.pth x.npz --to eca", r"eca has no place for an unnamed resnet"),
    ("good.pth x.ckpt --to torch", r"the torch layout goes into \.npz and \.safetensors only; \.ckpt takes"),
    ("good.pth x.pth --to keras", r"the keras layout goes into \.npz and \.safetensors only; \.pth takes"),
    ("good.npz x.pth --scope net", r"--scope applies to the tf1 layout, but the output is torch"),
    ("good.ckpt x.pth --scope net", r"has no scope 'net'; its names begin with bn1, conv1, fc, layer1_0$"),
    ("good.pth x.npz --key nope", r"good\.pth: no entry 'nope' that holds tensors"),
    ("good.npz x.pth --key state_dict", r"--key selects an entry of a PyTorch file, but this is npz"),
    ("good.pth x.npz --from tf1", r"the names of its \d+ tensors do not match tf1"),
    ("good.pth x.npz --model resnet18", r"do not match resnet18; mismatches: \d+"),
    ("good.pth x.npz --set depths=2", r"depths=2: expected a sequence of ints"),
    ("good.pth x.npz --set depths=(2,)", r"mismatches: \d+"),
    ("good.pth x.npz --json none/x.json", r"none/x\.json: the folder 'none' does not exist"),
    ("good.pth x.npz --json folder", r"folder: is a directory, expected a file name"),
    ("good.pth x.npz --json good.pth", r"good\.pth: would replace an input or another output"),
    ("good.pth x.ckpt --json x.ckpt.index", r"would replace an input or another output"),
    ("good.pth x.npz --reorder-classes p --json p", r"p: would replace an input or another output"),
    ("good.pth x.npz --json folder/../x.npz", r"would replace an input or another output"),
    ("good.pth", r"the following arguments are required: DST"),
    ("good.pth x.npz y.npz", r"unrecognized arguments: y\.npz"),
    ("good.pth x.npz --frobnicate", r"unrecognized arguments: --frobnicate"),
]  # fmt: skip
OTHER_COMMANDS = [
    ("", r"the following arguments are required: COMMAND"),
    ("convrt a b", r"invalid choice: 'convrt'"),
    ("inspect none.pth", r"none\.pth: there is no such file"),
    ("inspect goood.pth", r"goood\.pth: there is no such file; did you mean 'good\.pth'\?"),
    ("inspect good.cpt", r"good\.cpt: there is no such file; did you mean 'good\.ckpt'\?"),
    ("inspect nope.pth", r"nope\.pth: there is no such file$"),
    ("table cbam_resnet2O", r"there is no model 'cbam_resnet2O'; did you mean 'cbam_resnet20'\?"),
    ("inspect text.pth", r"not a known checkpoint format"),
    ("inspect good.pth --json good.pth", r"would replace an input or another output"),
    ("inspect good.ckpt --json good.ckpt.data-00000-of-00001", r"would replace an input or another output"),
    ("diff good.pth none.pth", r"none\.pth: there is no such file"),
    ("diff good.pth good.npz --json ./good.npz", r"would replace an input or another output"),
    ("diff good.pth", r"the following arguments are required: B"),
    ("check a.json good.pth", r"a\.json: cannot be read as a manifest \(No such file"),
    ("list modls", r"invalid choice: 'modls'"),
    ("table se_resnet5", r"there is no model 'se_resnet5'; did you mean 'se_resnet5\d'\?"),
    ("table", r"the following arguments are required: MODEL"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("line", "message"), [(f"convert {line}", m) for line, m in BAD] + OTHER_COMMANDS)
def test_bad_usage_and_input(run, unchanged, line: str, message: str):
    with unchanged():
        ran = run(*line.split())
    assert ran.code == 2
    assert re.search(message, ran.lines[0]), ran.err
    assert ran.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="neither pipes with names nor links for everyone there")
@pytest.mark.parametrize("line", ["inspect {}", "diff good.pth {}", "convert {} x.npz --json x.json"])
def test_devices_and_loops_are_not_read(run, line: str):
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for name, message in [("pipe", "is a device or a pipe"), ("loop", "Too many levels of symbolic links")]:
        ran = run(*line.format(name).split())
        assert (ran.code, len(ran.lines)) == (2, 1)
        assert f"{name}: " in ran.err
        assert message in ran.err
    assert run("convert", "good.pth", "x.npz", "--json", "loop").code == 0
    assert json.loads(Path("loop").read_text())


# --------------------------------------------------------------------------------------------------
# Valid usage


@pytest.mark.quick
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_convert_and_diff_and_inspect(run, suffix: str):
    ran = run("convert", "good.pth", f"x{suffix}", "--json", "plan.json")
    assert (ran.code, ran.err) == (0, "")
    number = 21 if suffix in (".weights.h5", ".ckpt") else 24  # step counts are in the metadata
    written = f"wrote x{suffix}: {number} tensors of an unnamed resnet, torch in the torch layout\n"
    assert ran.out.endswith(written)
    plan = json.loads(Path("plan.json").read_text())
    assert {len(tensor["sha256"]) for tensor in plan["tensors"]} == {64}
    assert plan["destination"]["path"] == f"x{suffix}"
    assert run("diff", "good.pth", f"x{suffix}") == (0, "equal: 24 tensors, bit for bit\n", "")
    ran = run("inspect", f"x{suffix}", "--json", "-")
    facts = json.loads(ran.out)
    assert (facts["attention"], facts["assumed"], facts["odd"]) == ("se", [], [])
    assert "architecture  an unnamed resnet" in ran.err


def test_dry_run_writes_nothing(run, unchanged):
    with unchanged():
        ran = run("convert", "good.pth", "x.ckpt", "--dry-run", "--scope", "net", "--json", "-")
    assert ran.code == 0
    assert "fc.weight\tnet/fc/kernel\t(8, 5)\tfloat32\n" in ran.err
    assert "would write x.ckpt: 21 tensors" in ran.err
    assert {tensor["sha256"] for tensor in json.loads(ran.out)["tensors"]} == {None}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_file_may_replace_itself(folder, run, suffix: str):
    before = list(folder.iterdir())
    assert run("convert", f"good{suffix}", f"good{suffix}", "--overwrite").code == 0
    assert run("diff", "good.pth", f"good{suffix}").code == 0
    assert run("convert", f"good{suffix}", f"good{suffix}", "--overwrite", "--dtype", "float64").code == 0
    with load(f"good{suffix}") as checkpoint:
        assert checkpoint["fc.weight"].dtype == np.float64
    assert sorted(folder.iterdir()) == sorted(before)  # no temporary files


def test_scope_options(run):
    assert run("convert", "good.pth", "a.ckpt", "--scope", "net/inner/").code == 0
    assert run("diff", "good.pth", "a.ckpt").code == 0
    assert run("convert", "a.ckpt", "b.npz", "--scope", "net/inner").code == 0
    assert run("diff", "good.pth", "b.npz").code == 0


def test_a_checkpoint_prefix_is_not_hidden_by_a_file(run, unchanged):
    Path("lightning.ckpt").write_bytes(Path("good.pth").read_bytes())
    for options in ([], ["--overwrite"]):
        with unchanged():
            ran = run("convert", "lightning.ckpt", "lightning.ckpt", *options)
        assert ran.code == 2
        assert "lightning.ckpt: is a file, which would hide the checkpoint of this prefix" in ran.err


DIFFERENCES = [
    ({"fc.bias": np.array([341, 342, 343, 344.5, 345], np.float32)}, "values differ"),
    ({"fc.bias": np.full(5, np.nan, np.float32)}, "5 of 5 values differ"),
    ({"fc.bias": np.zeros(5)}, "dtype float32 in the first, float64 in the second"),
]


@pytest.mark.parametrize(("change", "what"), DIFFERENCES)
def test_differences(run, change: dict, what: str):
    np.savez("other.npz", **arrays_with(change))
    (name,) = change
    ran = run("diff", "good.pth", "other.npz", "--json", "-", "--assume")
    assert ran.code == 1
    report = json.loads(ran.out, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert not report["equal"]
    assert [line["tensor"] for line in report["differences"]] == [name]
    assert what in report["differences"][0]["what"]
    assert ran.lines[-1] == "1 differences"
    assert run("diff", "other.npz", "other.npz").code == 0  # NaN with equal bits is no difference


def test_step_counts_that_one_file_lacks_are_no_difference(run):
    """Files saved by Keras or TF1 have none."""
    counts = {name: None for name in arrays_with({}) if name.endswith("num_batches_tracked")}
    np.savez("other.npz", **arrays_with(counts))
    ran = run("diff", "good.pth", "other.npz", "--json", "out.json")
    assert ran.code == 0
    weights = len(arrays_with({})) - len(counts)
    assert ran.out.splitlines() == [
        f"equal: {weights} tensors, bit for bit",
        f"note: {len(counts)} num_batches_tracked only in the first, which changes no output",
    ]
    assert len(json.loads(Path("out.json").read_text())["not_compared"]) == len(counts)
    np.savez("third.npz", **arrays_with({"bn1.num_batches_tracked": np.array(3)}))
    assert run("diff", "good.pth", "third.npz").code == 1  # both have it, with different values


@pytest.mark.parametrize("line", ["convert good.pth x.npz", "inspect good.pth", "diff good.pth good.npz"])
def test_a_report_replaces_no_file_of_another_kind(run, unchanged, line: str):
    with unchanged():
        ran = run(*line.split(), "--json", "good.ckpt.index")
    assert ran.code == 2
    assert "good.ckpt.index: exists already and is not a report of this kind" in ran.err
    Path("facts.json").touch()
    for _ in range(2):  # into an empty file, and over an earlier report
        assert run(*line.split(), "--json", "facts.json").code == 0
        assert json.loads(Path("facts.json").read_text())
        Path("x.npz").unlink(missing_ok=True)
    assert run(*line.split(), "--json", "/dev/null").code == 0


def test_files_whose_keywords_differ_are_different(run):
    save(
        position_coded(tiny(attention="se", block="basic", depths=(1,), stem="3x3", bn_epsilon=1e-3)), "e.npz"
    )
    ran = run("diff", "good.pth", "e.npz")
    assert ran.code == 1
    assert "(bn_epsilon)\t1e-05 in the first, 0.001 in the second" in ran.out


def test_list_and_table(run):
    models = dict(line.split("\t") for line in run("list", "models").out.splitlines()[1:])
    assert list(models) == list(MODELS)
    assert models["se_resnet50"] == "28,088,024"
    assert [line.split("\t")[0] for line in run("list", "families").out.splitlines()[1:]] == list(FAMILIES)
    formats = [line.split("\t")[1] for line in run("list", "formats").out.splitlines()[1:]]
    assert formats == [".pth .pt", ".safetensors", ".npz", ".weights.h5", ".ckpt", "/", ""]
    assert run("list").out.count("\n") > len(MODELS) + 8
    lines = run("table", "eca_resnet18").out.splitlines()
    assert lines[0].split("\t") == ["torch", "keras", "tf1", "PyTorch shape", "TensorFlow shape"]
    assert ("layer1.0.eca.conv.weight\tlayer1/basic_block/eca/conv/vars/0\tlayer1_0/eca/conv/kernel\t"
            "(1, 1, 3)\t(3, 1, 1)") in lines  # fmt: skip
    assert "bn1.num_batches_tracked\t-\t-\t()\t()" in lines


def test_odd_file_names(run):
    for name in (
        "a b.npz",
        "ü.npz",
        ":smile: [red].npz",
        "\udcff.npz",
        "-x.npz",
        "%s{0}.npz",
        "x" * 250 + ".npz",
    ):
        assert run("convert", "good.pth", f"./{name}").code == 0
        ran = run("inspect", f"./{name}")
        assert ran.code == 0
        assert name.encode(errors="backslashreplace").decode() in ran.out


# --------------------------------------------------------------------------------------------------
# As a real process


def python(*arguments: str, stdout: int | object = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.quick
def test_no_framework_is_imported():
    modules = "{'torch', 'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    assert python("-c", f"import weights_convert, sys; print({modules})").stdout == "set()\n"
    work = "import sys, weights_convert.__main__ as m, weights_convert as w"
    for suffix in CONTAINERS:
        work += f"; m.main(['convert', 'good.pth', 'x{suffix}']); w.load('x{suffix}').close()"
    ran = python("-c", f"{work}; print({modules})")
    assert ran.stdout.splitlines()[-1] == "set()", ran.stderr


def test_exit_codes_of_the_process():
    done = python("-m", "weights_convert", "convert", "good.pth", "x.weights.h5")
    assert (done.returncode, done.stderr) == (0, "")
    done = python("-m", "weights_convert", "diff", "x.weights.h5", "good.pth", "--json", "-")
    assert json.loads(done.stdout) == {"equal": True, "differences": [], "not_compared": []}
    np.savez("zero.npz", **arrays_with({"fc.bias": np.zeros(5, np.float32)}))
    assert python("-m", "weights_convert", "diff", "zero.npz", "good.pth").returncode == 1
    done = python("-m", "weights_convert", "convert", "0.bin", "y.npz")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "0.bin: there is no such file\n")
    done = python("-m", "weights_convert", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = python("-m", "weights_convert", "list", "models", stdout=full)
    assert (done.returncode, done.stderr) == (3, "standard output: No space left on device\n")


def test_a_closed_pipe_is_no_verdict():
    """The reader of stdout has closed the pipe: exit 141 as for any program, and the output is written."""
    np.savez("other.npz", **arrays_with({"fc.bias": np.zeros(5, np.float32)}))
    for line in ("diff good.pth other.npz", "convert good.pth x.npz --json plan.json"):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = python("-u", "-m", "weights_convert", *line.split(), stdout=writing)
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")
    assert json.loads(Path("plan.json").read_text())["tensors"]
    assert Path("x.npz").exists()


@pytest.mark.usefixtures("folder")
def test_several_files_are_inspected(run):
    ran = run("inspect", "good.pth", "good.ckpt", "--json", "facts.json")
    assert ran.code == 0
    assert ran.out.count("architecture") == 2
    facts = json.loads(Path("facts.json").read_text())
    assert [fact["format"] for fact in facts] == ["torch", "tf1"]
    assert run("inspect", "good.pth", "missing.pth").code == 2
    run("inspect", "good.pth", "--json", "one.json")
    assert json.loads(Path("one.json").read_text()) == facts[0]


def test_the_table_of_a_model_as_json(run):
    ran = run("table", "se_resnet20", "--json", "-")
    tensors = {tensor["names"]["torch"]: tensor for tensor in json.loads(ran.out)}
    assert tensors["layer1.0.se.fc1.weight"] == {
        "names": {
            "torch": "layer1.0.se.fc1.weight",
            "keras": "layer1/basic_block/se/fc1/vars/0",
            "tf1": "layer1_0/se/fc1/kernel",
        },
        "role": "se_dense",
        "shape": [1, 16],
        "tensorflow_shape": [16, 1],
    }
    assert tensors["bn1.num_batches_tracked"]["names"]["keras"] is None
