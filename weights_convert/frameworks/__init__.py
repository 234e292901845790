"""Live models: `load_into`, `state_of` and `load_model` for torch, Keras and TF1.

The model's class shows its framework, so that no framework is imported for a check.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from weights_convert.cautions import caution, caution_about
from weights_convert.changes import rounded
from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError, SpecError, nearest
from weights_convert.limits import Limits
from weights_convert.loading import load, opened
from weights_convert.spec import AttentionSpec, changed, is_count, network_spec, parameters

FRAMEWORKS = {"torch": "torch_model", "keras": "keras_model", "tf1": "tf1_session"}
FOLDERS = {"torch": "torch_impl", "keras": "keras_impl", "tf1": "tf1_compat"}  # of the networks
PACKAGES = {"torch": "torch", "keras": "keras tensorflow", "tf1": "tensorflow"}  # packages for pip
_BASES = {  # base class of a model -> framework
    ("torch.nn.modules.module", "Module"): "torch",
    ("keras.src.layers.layer", "Layer"): "keras",
    ("tensorflow.python.client.session", "BaseSession"): "tf1",
    ("tensorflow.python.training.monitored_session", "_MonitoredSession"): "tf1",
}


def load_into(
    model: Any,
    source: str | Path | Checkpoint,
    *,
    prefix: str = "",
    scope: str | None = None,
    settings: Mapping[str, Any] | None = None,
    new_head: bool = False,
    assume: bool = False,
    limits: Limits | None = None,
) -> None:
    """Load a checkpoint's weights into a live model, all of them or none.

    Keywords that a file does not specify (a stride, an epsilon) are assumed to equal the model's, with a
    `UserWarning` that names them.

    Args:
        model: a torch module or a Keras layer or model of this project, or a session of
            `tensorflow.compat.v1`; also a single attention block.
        source: a file of any container, or a `Checkpoint`.
        prefix: the part of the checkpoint to load, such as "layer1.0.se".
        scope: where the network is: its variable scope in a session, its path in a module or model around
            it; None if it is the only one.
        settings: keywords of the file's network, such as {"stride_in": "conv1"}; the model must have them.
        new_head: load all but the classifier, which keeps its values; the numbers of classes may differ.
        assume: do not warn about keywords that the file does not specify.
        limits: as in `load`.

    Raises:
        MismatchError: tensors, shapes, dtypes or keywords differ, or no keywords describe the changed model;
            the model is not modified.

    Example:
        >>> import torch_impl
        >>> model = torch_impl.se_resnet20()
        >>> load_into(model, state_of(torch_impl.se_resnet20()))
    """
    adapter = _adapter(model)
    if isinstance(source, Checkpoint):
        adapter.load_into(model, source, prefix, scope, head_of(source) if new_head else ())
        return
    with opened(source, settings=settings, limits=limits) as checkpoint:
        if not assume:
            caution_about(checkpoint, _complete(adapter.keywords_of(model, scope)))
        adapter.load_into(model, checkpoint, prefix, scope, head_of(checkpoint) if new_head else ())


def state_of(
    model: Any, *, scope: str | None = None, settings: Mapping[str, Any] | None = None, assume: bool = False
) -> Checkpoint:
    """Copies of a live model's weights under canonical names, and its keywords.

    The keywords include changes of its modules or layers after construction.

    Args:
        model, scope: as in `load_into`.
        settings: keywords that the model does not record, as a single attention block of TF1.
        assume: do not warn about defaults for such keywords.

    Raises:
        MismatchError: no keywords describe the changed model.

    Example:
        >>> import torch_impl
        >>> state = state_of(torch_impl.se_resnet20())
        >>> state.model, state["fc.weight"].shape
        ('se_resnet20', (10, 64))
    """
    arrays, config = _adapter(model).state_of(model, scope)
    state = Checkpoint.from_arrays(arrays, {**config, **(settings or {})})
    if not assume:
        caution_about(state)
    return state


def load_model(
    path: str | Path,
    framework: str = "torch",
    *,
    num_classes: int | None = None,
    dtype: str | None = None,
    **keywords: Any,
) -> Any:
    """Build the architecture and variant of a file with its weights, for inference.

    Args:
        path: a checkpoint of any container.
        framework: "torch" (a module in eval mode), "keras" (a built model) or "tf1" (a function
            `network(images, is_training=False, scope=None) -> (logits, end_points)` whose variables
            initialise from the file).
        num_classes: of a new classifier with random weights; None for the file's own. Of as many classes as
            the file's it is the file's.
        dtype: of the model, "float32", "float64", "float16" or "bfloat16"; None for the file's. In TF1 the
            images' dtype decides, and this one only rounds the weights.
        keywords: of `load`, such as `settings={"stride_in": "conv1"}` or `assume=True`.
    """
    if framework not in FRAMEWORKS:
        framework = str(framework)
        known = ", ".join(FRAMEWORKS)
        raise SpecError(
            f"there is no framework {framework!r}{nearest(framework, FRAMEWORKS)}; known: {known}"
        )
    if importlib.util.find_spec(FOLDERS[framework]) is None:
        raise SpecError(
            f"{framework}: {FOLDERS[framework]}, which holds the network, is not installed; "
            "copy that folder of this project beside weights_convert"
        )
    importlib.import_module("weights_convert.import_order")
    checkpoint = load(path, **keywords)
    try:
        if dtype is not None:
            checkpoint = rounded(checkpoint, dtype)
        elif (half := common_dtype(checkpoint)) in ("float16", "bfloat16") and framework != "tf1":
            caution(f"{path}: holds {half}, and so does the model; dtype='float32' gives a model of float32")
        spec, without = _with_head(checkpoint, num_classes)
        if framework != "tf1":  # there a session reads the file when it initialises the variables
            return adapter(framework).load_model(checkpoint, spec, without)
    finally:
        if framework == "tf1":
            checkpoint.close_when_dropped()
        else:
            checkpoint.close()
    return adapter(framework).load_model(checkpoint, spec, without)


def _with_head(checkpoint: Checkpoint, num_classes: int | None) -> tuple[Any, Collection[str]]:
    """The spec with another number of classes, and the tensors that are not loaded then."""
    spec: Any = checkpoint.spec
    if num_classes is None or num_classes == getattr(spec, "num_classes", None):
        return spec, ()
    if not spec.head:
        raise SpecError(f"{checkpoint.path}: {checkpoint.describe()} has no classifier to replace")
    return changed(spec, {"num_classes": num_classes}), head_of(checkpoint)


def head_of(checkpoint: Checkpoint) -> Collection[str]:
    """The canonical names of the classifiers' tensors, whether the checkpoint has them or not."""
    return tuple(f"{head}.{leaf}" for head in checkpoint.spec.heads for leaf in ("weight", "bias"))


def adapter(framework: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{FRAMEWORKS[framework]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("weights_convert", "numpy")):
            raise
        packages = PACKAGES[framework]
        hint = f"; pip install {packages}" if (error.name or "").partition(".")[0] in packages.split() else ""
        raise SpecError(f"{framework}: {error.name} is not installed{hint}") from None


def _adapter(model: Any) -> ModuleType:
    for base in type(model).__mro__:
        if framework := _BASES.get((base.__module__, base.__name__)):
            return adapter(framework)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise SpecError(f"{kind} is neither a torch module, a Keras layer nor a tensorflow.compat.v1 session")


# --------------------------------------------------------------------------------------------------
# Shared by the three adapters


def check_config(config: Mapping[str, Any], checkpoint: Checkpoint, without: Collection[str] = ()) -> None:
    """Raise `MismatchError` for keywords that differ between a model and a checkpoint.

    `config` holds all keywords of a network, or the known keywords of a single block. Keywords that the
    checkpoint only assumes are not compared.
    """
    spec, lines = checkpoint.spec, []
    model = network_spec(config) if spec.network else None
    if without and model is not None:  # a new classifier
        spec = changed(spec, {"num_classes": model.num_classes})
    same_shapes = model is not None and parameters(spec) == parameters(model)
    wanted = config if model is None else model.model_kwargs()
    for keyword, value in wanted.items():
        ours = getattr(spec, keyword, value)
        harmless = same_shapes and not spec.matters_unseen(keyword)  # other keywords with the same shapes
        if ours != value and keyword not in checkpoint.assumed and not harmless:
            lines.append(f"{keyword}: {ours!r} in the checkpoint, {value!r} in the model")
    if lines:
        raise MismatchError(f"the model does not match the checkpoint; {len(lines)} keywords differ:", lines)


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a network with None resolved; the keywords of a single block unchanged."""
    spec = network_spec(config)
    return dict(config) if spec is None else spec.model_kwargs()


def possible_specs(config: Mapping[str, Any]) -> list[Any]:
    """The spec of a network with these keywords, or the possible specs of a single attention block."""
    spec = network_spec(config)
    return AttentionSpec.widest() if spec is None else [spec]


def config_of(model: Any) -> dict[str, Any]:
    """The current keywords of a torch module or Keras layer of this project.

    Raises:
        MismatchError: no keywords describe the changed model.
    """
    if hasattr(model, "live_keywords"):
        try:
            return dict(model.live_keywords())
        except ValueError as error:
            raise MismatchError(f"the model no longer matches its keywords: {error}") from None
    spatial = getattr(model, "spatial", None)
    if spatial is None or not hasattr(model, "spatial_input"):  # SE and ECA: shapes show everything
        channels, conv = getattr(model, "channels", None), getattr(model, "conv", None)
        keywords: dict[str, Any] = {} if channels is None else {"channels": channels}
        if conv is not None:
            keywords["eca_padding"] = getattr(model, "padding", None) or conv.padding_mode
        return keywords
    keywords = {"cbam_order": spatial.order, "cbam_spatial_input": model.spatial_input}
    if (bn := spatial.bn) is not None:
        in_torch = hasattr(bn, "eps")
        keywords["bn_epsilon"] = bn.eps if in_torch else bn.epsilon
        # Keras's momentum is the weight of the old value
        keywords["cbam_bn_momentum"] = bn.momentum if in_torch else round(1 - bn.momentum, 12)
    return keywords


def selected(checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    """Name in the model -> canonical name, for the part of the checkpoint below `prefix`."""
    start = f"{prefix.rstrip('.')}." if prefix else ""
    names = {name.removeprefix(start): name for name in checkpoint if name.startswith(start)}
    if not names:
        raise MismatchError(f"the checkpoint ({checkpoint.describe()}) has nothing below {prefix!r}")
    return names


def match(
    wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The arrays for a model's tensors (name -> canonical shape and dtype), in the model's dtypes.

    Args:
        names: name in the model -> canonical name.
        without: canonical names that are not loaded.

    Raises `MismatchError` listing every missing, extra and misshapen tensor, or the dtype that would lose
    values.
    """
    wanted = {name: tensor for name, tensor in wanted.items() if names.get(name, name) not in without}
    names = {name: canonical for name, canonical in names.items() if canonical not in without}
    details = [
        f"missing in the checkpoint: {name} {wanted[name][0]}"
        for name in wanted
        if name not in names and not is_count(name)
    ]
    details += [
        f"extra in the checkpoint: {name} {checkpoint.tensors[names[name]].info.shape}{nearest(name, wanted)}"
        for name in names
        if name not in wanted and not is_count(name)
    ]
    common = [name for name in wanted if name in names]
    for name in common:
        shape = checkpoint.tensors[names[name]].info.shape
        if shape != wanted[name][0]:
            details.append(f"misshapen: {name} {shape} in the checkpoint, {wanted[name][0]} in the model")
    if details:
        raise MismatchError(
            f"the checkpoint's tensors do not match the model; mismatches: {len(details)}", details
        )
    return {name: cast(name, checkpoint[names[name]], wanted[name][1]) for name in common}


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in another dtype; `MismatchError` if a value would change."""
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        changed = array.astype(dtype)
        same = np.array_equal(changed.astype(array.dtype), array, equal_nan=True)
    if not same:
        raise MismatchError(
            f"{name} is {array.dtype} in the checkpoint and {dtype} in the model, which would lose values; "
            f"create the model in {array.dtype}, or convert the file with --dtype {dtype}"
        )
    return changed


def common_dtype(checkpoint: Checkpoint) -> str:
    """The narrowest dtype that holds every floating-point tensor of a checkpoint."""
    names = {tensor.info.dtype.name for tensor in checkpoint.tensors.values()} - {"int64"}
    if "float64" in names:
        return "float64"
    return names.pop() if len(names) == 1 else "float32"


def block_config(spec: Any) -> dict[str, Any]:
    """The keywords of an attention block for `blocks.make_attention`."""
    config = spec.model_kwargs()
    size = config.pop("eca_kernel_size")
    return config | {"eca_kernel_sizes": (size,) if size else None}
