"""The keywords of networks in the graph beside a TF1 checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow.compat.v1 as tf

from parity_tests.judge.synthetic import tiny, weights
from parity_tests.tests.live import assert_same, tf1_network, without_counts
from parity_tests.tests.test_self_describing import SPEC, save_keras, save_keras_weights, save_tf1, save_torch
from weights_convert import LimitError, Limits, MismatchError, SourceError, load, save

# --------------------------------------------------------------------------------------------------
# TensorFlow 1: the graph beside the checkpoint


def test_one_of_two_networks_has_its_own_keywords(tmp_path, session):
    other = tiny(attention="se")
    tf1_network(session, SPEC, scope="one")
    tf1_network(session, other, scope="two")
    with session.graph.as_default():
        path = tf.train.Saver().save(session, str(tmp_path / "x.ckpt"))
        alone = [v for v in tf.global_variables() if v.op.name.startswith("two/")]
        second = tf.train.Saver(alone).save(session, str(tmp_path / "y.ckpt"))
    for scope, spec in (("one", SPEC), ("two", other)):
        with load(path, scope=scope) as checkpoint:
            assert checkpoint.spec == spec
    with pytest.raises(SourceError, match="holds several networks, choose one with --scope"):
        load(path, assume=True)
    with load(second) as checkpoint:
        assert checkpoint.spec == other


def test_without_the_graph_the_checkpoint_says_nothing(tmp_path):
    path = save_tf1(tmp_path)
    Path(f"{path}.meta").unlink()
    with pytest.warns(UserWarning, match="stride_in='conv2'"):
        load(path).close()


def test_what_the_converter_wrote_counts_before_a_graph_that_was_there(tmp_path):
    path = save_tf1(tmp_path)
    save(
        weights(tiny(attention="se")),
        Path(path).rename(tmp_path / "z.ckpt") if Path(path).exists() else tmp_path / "z.ckpt",
    )
    Path(f"{path}.meta").replace(tmp_path / "z.ckpt.meta")
    with load(tmp_path / "z.ckpt") as checkpoint:
        assert checkpoint.spec == tiny(attention="se")


GRAPHS = {
    "truncated": (lambda data: data[:-10], "cannot be read"),
    "no protobuf": (lambda _: b"\xff" * 40, "cannot be read"),
    "a group": (lambda _: b"\x0b", "a protobuf field of type 3"),
    "another stride": (lambda data: data.replace(b'"num_classes": 5', b'"num_classes": 7'), "do not match"),
    "an invalid keyword": (lambda data: data.replace(b'"conv1"', b'"conv9"'), "stride_in='conv9': expected"),
    "no keywords": (lambda data: data.replace(b'"keywords"', b'"keyw0rds"'), "without a scope and keywords"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_hostile_graph_is_refused_in_one_line(tmp_path, case):
    change, message = GRAPHS[case]
    path = save_tf1(tmp_path)
    meta = Path(f"{path}.meta")
    meta.write_bytes(change(meta.read_bytes()))
    with pytest.raises((SourceError, MismatchError)) as caught:
        load(path)
    assert message in caught.value.message


def test_a_graph_of_millions_of_fields_is_refused(tmp_path):
    path = save_tf1(tmp_path)
    Path(f"{path}.meta").write_bytes(b"\x28\x01" * 500_000)
    with pytest.raises(LimitError, match="fields or more"):
        load(path)
    Path(f"{path}.meta").write_bytes(b"\x22\x80\x80\x40" + bytes(2**20) + b"\x22\x80\x80\x40" + bytes(2**20))
    with pytest.raises(LimitError, match="bytes of collections or more"):
        load(path, limits=Limits(max_tensors=3000))


def test_the_weights_are_the_same_bits(tmp_path):
    for saver in (save_torch, save_keras, save_keras_weights, save_tf1):
        with load(saver(tmp_path)) as checkpoint:
            assert_same(without_counts(checkpoint), without_counts(weights(SPEC)))
