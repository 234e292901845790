"""TF1 checkpoints without TensorFlow: TensorFlow reads our files, and we read its files."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from weights_convert.errors import DestinationError, MismatchError, SourceError
from weights_convert.formats.base import METADATA_NAME, TensorInfo
from weights_convert.formats.tf1 import checkpoint, proto, table
from weights_convert.formats.tf1 import crc32c as crc_module
from weights_convert.formats.tf1.checkpoint import open_tf1, tf1_files, write_tf1
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.table import read_table, write_table

FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
METADATA = {"architecture": "se_resnet50", "spec": {"bn_epsilon": 1e-5}}


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow").compat.v1


def coded(shape, dtype=np.float32, start=0):
    """Every element encodes its position, so that every permutation is noticed."""
    return np.arange(start, start + math.prod(shape)).reshape(shape).astype(dtype)


ARRAYS = {
    "layer1_0/conv1/kernel": coded((3, 3, 2, 5)),
    "layer1_0/conv1/kernel/Momentum": coded((3, 3, 2, 5), start=1000),
    "float64": coded((2, 3, 4), np.float64) / 7,
    "half": coded((3, 5), np.float16),
    "bfloat16": coded((3, 5), ml_dtypes.bfloat16),
    "bool": coded((3, 3)) % 2 == 0,
    "uint8": coded((16, 16), np.uint8),
    "int8": coded((2, 4), np.int8, start=-4),
    "int16": coded((2, 4), np.int16, start=-4),
    "uint16": coded((2, 4), np.uint16),
    "int32": coded((2, 4), np.int32, start=-4),
    "int64": coded((2, 4), np.int64, start=-(2**53) - 1),
    "complex64": coded((2, 3), np.complex64) * (1 + 2j),
    "complex128": coded((2, 3), np.complex128) * (1 + 2j),
    "global_step": np.array(12345, np.int64),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0,), np.float32),
    "empty_in_the_middle": np.zeros((3, 0, 2), np.float64),
    "not_a_number": np.array([np.nan, -0.0, np.inf], np.float32),
}


def long_names(count):
    """Unsorted names with some shared prefixes that need several index blocks."""
    rng = np.random.default_rng(0)
    return [f"{rng.integers(1 << 40):x}/{'a_long_scope_name/' * 8}{i}/kernel" for i in range(count)]


def write(prefix, arrays, metadata=None):
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    write_tf1(prefix, infos, arrays.__getitem__, metadata or {})
    return prefix


def save(tf, prefix, arrays, devices=("/cpu:0",), **options):
    """Save variables with these values with `tf.train.Saver`, distributed over the devices."""
    config = tf.ConfigProto(device_count={"CPU": len(devices)})
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        for i, (name, array) in enumerate(arrays.items()):
            with tf.device(devices[i % len(devices)]):
                tf.get_variable(name, initializer=tf.constant(array))
        session.run(tf.global_variables_initializer())
        tf.train.Saver(**options).save(session, str(prefix), write_meta_graph=False)
    return prefix


def read_all(path):
    with open_tf1(path) as reader:
        arrays = {name: reader.read(name) for name in reader.tensors}
        for name, info in reader.tensors.items():
            assert (arrays[name].shape, arrays[name].dtype) == info
        return arrays


def assert_same_bits(got, expected):
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype), name
        assert got[name].tobytes() == array.tobytes(), name


def read_by_tf(tf, prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def edit_index(prefix, **entries):
    """Replace or add entries, with all checksums correct."""
    index = tf1_files(prefix)[1]
    table = {**read_table(index), **{name.encode(): value for name, value in entries.items()}}
    write_table(index, sorted(table.items()))


def refused(path, *mentions):
    """Opening or reading must raise a one-line SourceError that starts with a path."""
    with pytest.raises(SourceError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path.parent))
    for mention in mentions:
        assert mention in message
    return True


# CRC-32C


def crc_bit_by_bit(data, value=0):
    register = value ^ 0xFFFFFFFF
    for byte in bytes(data):
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),  # this one and the next two: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc_vectors(data, crc):
    assert crc32c(data) == crc


def test_masked_crc_of_nothing():
    assert masked(crc32c(b"")) == 0xA282EAD8


WINDOW = crc_module._WINDOW
LENGTHS = [0, 1, 2, 3, 4, 5, *np.random.default_rng(1).integers(0, 5001, 40).tolist()]
LENGTHS += [n + d for n in (WINDOW, 2 * WINDOW, 4 * WINDOW, 5 * WINDOW) for d in (-1, 0, 1)]


@pytest.mark.parametrize("length", LENGTHS)
def test_crc_equals_bitwise_reference(length):
    rng = np.random.default_rng(length)
    data = rng.integers(0, 256, length, np.uint8)
    value = int(rng.integers(1 << 32))
    assert crc32c(data, value) == crc_bit_by_bit(data, value)


@pytest.mark.parametrize("chunk", [1, 3, 64, WINDOW, WINDOW + 1, 20000])
def test_crc_across_chunks(monkeypatch, chunk):
    data = np.random.default_rng(chunk).integers(0, 256, 2 * chunk + 2, np.uint8)
    expected = [crc_bit_by_bit(data[:n]) for n in (chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 2)]
    monkeypatch.setattr(crc_module, "_CHUNK", chunk)
    assert [crc32c(data[:n]) for n in (chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 2)] == expected


@pytest.mark.parametrize("distance", [-2, -1, 0, 1, 5])
def test_crc_continues_around_the_real_chunk(distance):
    data = np.random.default_rng(2).integers(0, 256, 2 * crc_module._CHUNK + distance, np.uint8)
    for cut in (1, 5000, crc_module._CHUNK - 1, crc_module._CHUNK + 3):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_crc_takes_any_buffer_and_changes_none():
    data = bytes(range(256)) * 100
    array = np.frombuffer(bytearray(data), np.uint8)
    assert crc32c(data) == crc32c(bytearray(data)) == crc32c(memoryview(data)) == crc32c(array)
    assert array.tobytes() == data


# Written here, read by TensorFlow


def test_tf_reads_what_we_write(tf, tmp_path):
    write(tmp_path / "model.ckpt", ARRAYS)
    assert_same_bits(read_by_tf(tf, tmp_path / "model.ckpt"), ARRAYS)


def test_saver_restores_what_we_write(tf, tmp_path):
    prefix = write(tmp_path / "model.ckpt", ARRAYS, METADATA)
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {
            name: tf.get_variable(name, array.shape, array.dtype.type, tf.zeros_initializer())
            for name, array in ARRAYS.items()
        }
        tf.train.Saver().restore(session, str(prefix))
        assert_same_bits({name: np.asarray(a) for name, a in session.run(variables).items()}, ARRAYS)


def same_files(a, b):
    return [x.read_bytes() for x in tf1_files(a)] == [x.read_bytes() for x in tf1_files(b)]


def test_our_files_are_tf_s_byte_for_byte(tf, tmp_path):
    assert same_files(write(tmp_path / "ours", ARRAYS), save(tf, tmp_path / "theirs", ARRAYS))


@pytest.mark.parametrize("count", [2000, 5000])
def test_an_index_of_several_blocks(tf, tmp_path, count):
    arrays = {name: coded((i % 3,), start=i) for i, name in enumerate(long_names(count))}
    ours, theirs = write(tmp_path / "ours", arrays), tmp_path / "theirs"
    tf.raw_ops.SaveV2(  # the operation of `tf.train.Saver`, which saves creating 5000 variables
        prefix=str(theirs),
        tensor_names=sorted(arrays),
        shape_and_slices=[""] * count,
        tensors=[tf.constant(arrays[name]) for name in sorted(arrays)],
    )
    assert tf1_files(ours)[1].stat().st_size > table._BLOCK_SIZE
    assert_same_bits(read_by_tf(tf, ours), arrays)
    assert_same_bits(read_all(theirs), arrays)
    assert same_files(ours, theirs)


def test_every_dtype_number_is_tf_s(tf):
    for dtype, number in proto.DTYPE_NUMBERS.items():
        assert tf.as_dtype(number).as_numpy_dtype == dtype.type
    for number, description in proto._NO_ARRAYS.items():
        assert description == f"{tf.as_dtype(number).name} tensor"


def test_metadata_and_order(tf, tmp_path):
    arrays = {"zebra": coded((2,)), "Zebra": coded((3,)), "a/b": coded((4,)), "a": coded((5,))}
    prefix = write(tmp_path / "model.ckpt", arrays, METADATA)
    with open_tf1(prefix) as reader:
        assert reader.metadata == METADATA
        assert list(reader.tensors) == ["Zebra", "a", "a/b", "zebra"]
        assert reader.left_out == {}
    assert METADATA_NAME in read_by_tf(tf, prefix)
    assert read_all(write(tmp_path / "plain", arrays)).keys() == arrays.keys()


def test_no_tensors_at_all(tmp_path):
    assert read_all(write(tmp_path / "model.ckpt", {})) == {}


def test_writes_views_and_leaves_them_alone(tmp_path):
    views = {"matrix": coded((4, 6)).T[::-1], "vector": coded((9,))[::-2]}
    for view in views.values():
        view.flags.writeable = False
    assert_same_bits(read_all(write(tmp_path / "model.ckpt", views)), views)


def test_one_tensor_at_a_time_in_sorted_order_and_the_index_last(tmp_path):
    prefix, asked = tmp_path / "model.ckpt", []

    def read(name):
        assert not tf1_files(prefix)[1].exists()
        asked.append(name)
        return ARRAYS[name]

    write_tf1(prefix, {n: TensorInfo(a.shape, a.dtype) for n, a in ARRAYS.items()}, read, {})
    assert asked == sorted(ARRAYS)
    assert sorted(tmp_path.iterdir()) == sorted(tf1_files(prefix))


@pytest.mark.parametrize(
    ("name", "info", "mention"),
    [
        (METADATA_NAME, TensorInfo((2,), np.dtype(np.float32)), "reserved for metadata"),
        ("w", TensorInfo((2,), np.dtype("datetime64[s]")), "convert them first"),
        ("w", TensorInfo((2,), np.dtype(">f4")), "convert them first"),
        ("w", TensorInfo((1, 2), np.dtype(np.float32)), "expected"),
        ("w", TensorInfo((2,), np.dtype(np.int32)), "expected"),
    ],
)
def test_refuses_to_write(tmp_path, name, info, mention):
    with pytest.raises((DestinationError, MismatchError), match=mention):
        write_tf1(tmp_path / "model.ckpt", {name: info}, lambda _: coded((2,)), {})
    assert not tf1_files(tmp_path / "model.ckpt")[1].exists()


# Written by TensorFlow, read here


def test_reads_what_saver_writes(tf, tmp_path):
    assert_same_bits(read_all(save(tf, tmp_path / "model.ckpt-7", ARRAYS)), ARRAYS)


def test_reads_training_state(tf, tmp_path):
    """After three steps there are Momentum slots, a global step, and a file named `checkpoint`."""
    with tf.Graph().as_default(), tf.Session() as session:
        kernel = tf.get_variable("fc/kernel", initializer=tf.constant(coded((3, 4)) / 7))
        loss = tf.reduce_sum(tf.square(kernel))
        step = tf.train.get_or_create_global_step()
        optimizer = tf.train.MomentumOptimizer(0.01, 0.9)
        train = optimizer.minimize(loss, global_step=step)
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(train)
        prefix = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=step)
        expected = {
            "fc/kernel": session.run(kernel),
            "fc/kernel/Momentum": session.run(optimizer.get_slot(kernel, "momentum")),
            "global_step": np.asarray(session.run(step)),
        }
    assert prefix.endswith("model.ckpt-3")
    for path in (Path(prefix), tmp_path):  # by its prefix; by the directory, whose `checkpoint` TF wrote
        assert_same_bits(read_all(path), expected)


def test_reads_several_data_files(tf, tmp_path):
    devices = ("/cpu:0", "/cpu:1", "/cpu:2")
    prefix = save(tf, tmp_path / "model.ckpt", ARRAYS, devices, sharded=True)
    assert len(list(tmp_path.glob("model.ckpt.data-*-of-00003"))) == 3
    assert_same_bits(read_all(prefix), ARRAYS)
    assert_same_bits(read_all(tmp_path / "model.ckpt.data-00001-of-00003"), ARRAYS)
    missing = tmp_path / "model.ckpt.data-00002-of-00003"
    missing.unlink()
    assert refused(prefix, f"{missing}: no such file")


def test_reads_object_based_checkpoints(tf, tmp_path):
    weights = coded((3, 4))
    model = tf.train.Checkpoint(dense=tf.train.Checkpoint(kernel=tf.Variable(weights)))
    prefix = Path(model.write(str(tmp_path / "tf2")))
    with open_tf1(prefix) as reader:
        name = "dense/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        assert list(reader.tensors) == [name]
        assert reader.left_out == {"_CHECKPOINTABLE_OBJECT_GRAPH": "graph of Python objects"}
        assert reader.read(name).tobytes() == weights.tobytes()


def test_leaves_out_strings_and_slices(tf, tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable("text", initializer=tf.constant(["a", "bc"]))
        tf.get_variable("cut", [6, 2], partitioner=tf.fixed_size_partitioner(3))
        tf.get_variable("whole", initializer=tf.constant(coded((2, 3))))
        session.run(tf.global_variables_initializer())
        prefix = Path(tf.train.Saver().save(session, str(tmp_path / "model.ckpt")))
    with open_tf1(prefix) as reader:
        assert reader.left_out == {"text": "string tensor", "cut": "slices of a partitioned variable"}
        assert reader.read("whole").tobytes() == coded((2, 3)).tobytes()
        assert list(reader.tensors) == ["whole"]


@pytest.mark.parametrize(
    ("number", "description"),
    [
        (20, "resource tensor"),
        (21, "variant tensor"),
        (11, "tensor of TensorFlow's dtype number 11"),
        (99, "tensor of TensorFlow's dtype number 99"),
    ],
)
def test_leaves_out_other_dtypes(tmp_path, number, description):
    prefix = write(tmp_path / "model.ckpt", {"w": coded((2,))})
    edit_index(prefix, odd=proto._field(proto._DTYPE, number))
    with open_tf1(prefix) as reader:
        assert reader.left_out == {"odd": description}
        assert list(reader.tensors) == ["w"]


def test_big_endian_checkpoints(tf, tmp_path):
    """TensorFlow on a big-endian machine writes swapped numbers and CRCs of the swapped bytes."""
    swapped = {name: array.copy() for name, array in ARRAYS.items()}
    for array in swapped.values():
        checkpoint._swap_bytes(array)
    prefix = write(tmp_path / "model.ckpt", swapped)
    edit_index(prefix, **{"": proto.dump_header() + proto._field(proto._ENDIANNESS, 1)})
    assert_same_bits(read_by_tf(tf, prefix), ARRAYS)
    assert_same_bits(read_all(prefix), ARRAYS)


def test_swapping_complex_numbers_keeps_their_parts_in_place():
    array = np.array([1 + 2j, 3 + 4j], np.complex64)
    expected = array.astype(">c8").tobytes()
    checkpoint._swap_bytes(array)
    assert array.tobytes() == expected


# Paths
