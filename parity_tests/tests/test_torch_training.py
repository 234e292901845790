"""Training PyTorch networks as people do: gradient checkpointing, freezing, EMA, bfloat16, DDP, Lightning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torch_impl
from parity_tests.judge.synthetic import tiny
from parity_tests.watch.build import same_bits
from weights_convert import load_into, load_model, save, state_of
from weights_convert.spec import MobileNetSpec, ShuffleNetSpec, Spec, VGGSpec

SPECS = {
    "se": tiny(attention="se", groups=4, width_per_group=32),
    "cbam": tiny(attention="cbam", block="basic", dropout=0.3),
    "mobilenet": MobileNetSpec(depths=(1, 2), widths=(8, 8), stem_width=8, num_classes=5, attention="cbam"),
    "shufflenet": ShuffleNetSpec(
        depths=(1, 2), widths=(12, 24), stem_width=6, num_classes=5, attention="cbam"
    ),
    "vgg": VGGSpec(depths=(1, 2), widths=(8, 8), head_width=16, pool_size=2, num_classes=5, dropout=0.3),
}
LABELS = torch.tensor([0, 1, 2, 3])


@pytest.fixture(params=SPECS)
def model(request) -> Any:
    spec: Spec = SPECS[request.param]
    return getattr(torch_impl, spec.network)(**spec.model_kwargs()).train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 17, 20)


def step(model: nn.Module, images: Tensor) -> None:
    """One forward and backward pass, with the same dropout each time."""
    torch.manual_seed(1)
    F.cross_entropy(model(images), LABELS).backward()


def checkpointing(model: Any) -> Any:
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    return other


def assert_same_step(model: nn.Module, other: nn.Module) -> None:
    """The same gradients and the same running statistics, updated once, bit for bit."""
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.grad, same.grad), name
    for (name, buffer), same in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, same), name
        assert not name.endswith("num_batches_tracked") or buffer == 1


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_checkpointing_changes_no_number(model, images, dtype):
    model = model.to(dtype)
    other, calls = checkpointing(model), []
    stage = {"mobilenet": "stage1", "shufflenet": "stage2"}.get(model.kind, "layer1")
    first = model.entrance.replace("conv1", f"{stage}.0.conv1")
    other.get_submodule(first).register_forward_hook(lambda *_: calls.append(1))
    for network in (model, other):
        step(network, images.to(dtype))
    assert len(calls) == 2  # the second time for the gradients
    assert_same_step(model, other)
    other.set_grad_checkpointing(False)
    step(other, images.to(dtype))
    assert len(calls) == 3


def test_gradient_checkpointing_leaves_frozen_norms_and_evaluation_alone(model, images):
    other = checkpointing(model)
    for network in (model, other):
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms[1:]:
            norm.eval()
        step(network, images)
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name
    assert state_of(other).spec == state_of(model).spec
    other.eval()
    with torch.no_grad():
        assert torch.equal(other(images), model.eval()(images))
    assert torch.equal(torch.fx.symbolic_trace(other)(images), model(images))


def kept_for_gradients(model: nn.Module, images: Tensor) -> int:
    """Bytes of the activations that live from the forward to the backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(_: nn.Module, inputs: tuple[Tensor]) -> None:
        keep(inputs[0])

    for block in model.modules():
        if isinstance(block, torch_impl.BasicBlock):
            block.register_forward_pre_hook(keep_input)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(model, images)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in weights)


def test_gradient_checkpointing_saves_memory():
    model, images = torch_impl.cbam_resnet20(), torch.rand(4, 3, 32, 32)
    assert kept_for_gradients(checkpointing(model), images) < 0.4 * kept_for_gradients(model, images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside the compiler
def test_gradient_checkpointing_compiles(images):
    model = torch_impl.ResNet(**tiny(depths=(1,), block="basic").model_kwargs()).double()
    other = checkpointing(model)
    step(model, images.double())
    step(torch.compile(other, backend="aot_eager", fullgraph=True), images.double())
    assert_same_step(model, other)


def test_only_the_new_head_is_trained(model, images):
    """Freezing: nothing else changes, running statistics included."""
    model.requires_grad_(False)
    model.reset_classifier(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2
    step(model.eval(), images)
    torch.optim.SGD(trained, 0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{model.head}.weight", f"{model.head}.bias"}


def test_an_average_of_the_weights_converts(model, images, tmp_path):
    """`AveragedModel` has the network in `module` and a count of its own, which is left out."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        step(model, images)
        optimizer.step()
        average.update_parameters(model)
    torch.save(average.state_dict(), tmp_path / "average.pth")
    with torch.inference_mode():
        wanted = average.eval()(images)
        assert torch.equal(load_model(tmp_path / "average.pth")(images), wanted)
    assert state_of(average.module).spec == state_of(model).spec
    assert same_bits(state_of(average), state_of(average.module), "float32") == []


def test_bfloat16_trains_float32_weights(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
    plain = copy.deepcopy(model).train()
    assert {tensor.dtype for tensor in plain.state_dict().values()} == {torch.float32, torch.int64}


def _train_in_one_of_two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch_impl.ResNet(**SPECS["se"].model_kwargs()).double()
    model.set_grad_checkpointing()
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/before.pth")
    wrapped = nn.parallel.DistributedDataParallel(model)
    images = torch.load(f"{folder}/images.pth")[2 * rank : 2 * rank + 2]
    F.cross_entropy(wrapped(images), LABELS[2 * rank : 2 * rank + 2]).backward()
    torch.optim.SGD(wrapped.parameters(), 0.1).step()
    save(state_of(wrapped), f"{folder}/after{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_network(tmp_path):
    """DistributedDataParallel over gloo: the mean of the gradients of both halves of a batch."""
    images = torch.rand(4, 3, 17, 20, dtype=torch.float64)
    torch.save(images, tmp_path / "images.pth")
    torch.multiprocessing.spawn(_train_in_one_of_two_processes, (str(tmp_path),), 2)
    model = torch_impl.ResNet(**SPECS["se"].model_kwargs()).double()
    load_into(model, tmp_path / "before.pth")
    for half in (slice(0, 2), slice(2, 4)):
        (F.cross_entropy(model(images[half]), LABELS[half]) / 2).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for rank in range(2):
        trained = load_model(tmp_path / f"after{rank}.safetensors", dtype="float64")
        for (name, wanted), parameter in zip(model.named_parameters(), trained.parameters(), strict=True):
            torch.testing.assert_close(parameter.data, wanted.data, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, some at each version
def test_lightning_trains_a_network(tmp_path):
    reason = "Lightning is no dependency; its modules and files are those of the tests above"
    lightning = pytest.importorskip("lightning", reason=reason)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch_impl.ResNet(**SPECS["se"].model_kwargs())

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Classifier()
    batches = torch.utils.data.DataLoader([(torch.rand(3, 17, 20), n % 5) for n in range(4)], batch_size=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=Path(tmp_path), **quiet)
    trainer.fit(module, batches)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = state_of(load_model(tmp_path / "last.ckpt"))
    assert same_bits(state, state_of(module), "float32") == []  # the network is found inside
