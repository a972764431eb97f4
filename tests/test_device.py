"""What evaluation reads from a device, counted without one: each such read makes the CPU wait for the device."""

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vocseg import (
    CrossEntropy,
    Dice,
    FocalLoss,
    Inference,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    SumOfLosses,
    VOCDataModule,
)
from vocseg.callbacks.base import labelled_images, to_arrays
from vocseg.data.synthetic import SYNTHETIC_CLASSES

DEVICE = torch.device("meta")  # the only device beside the CPU that every build of torch knows
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on ``DEVICE``; its values are in ``inner``, on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of Device")


class Device(TorchDispatchMode):
    """Computes with DeviceTensors, and lists the operations for which a real device would have been waited for."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        leaves = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, torch.Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        on_device = bool(ours)
        if "device" in kwargs and kwargs["device"] is not None:
            on_device = torch.device(kwargs["device"]) == DEVICE
            kwargs["device"] = torch.device("cpu")
        if ours:
            mixed = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor) and leaf.ndim]
            assert not mixed or name in ("copy_", "index", "index_put_"), f"{name} of tensors on two devices"
            masks = name.startswith("index") and any(leaf.dtype == torch.bool for leaf in leaves[1:])
            if mixed or masks or name in WAITS or not on_device:
                self.waits.append(name)
        wrappers = {id(leaf.inner): leaf for leaf in ours}
        args, kwargs = tree_map_only(DeviceTensor, lambda leaf: leaf.inner, (args, kwargs))
        result = func(*args, **kwargs)
        if not on_device:
            return result
        return tree_map_only(
            torch.Tensor, lambda leaf: wrappers[id(leaf)] if id(leaf) in wrappers else DeviceTensor(leaf), result
        )


@pytest.fixture
def batches(voc_root):
    data = VOCDataModule(
        voc_root,
        class_names=SYNTHETIC_CLASSES,
        image_size=32,
        batch_size=3,
        num_workers=0,
        eval_transforms="keep_ratio",
        predict_path=str(next(voc_root.rglob("JPEGImages"))),
    )
    for stage in ("validate", "predict"):
        data.setup(stage)

    def on(role, device):
        loader = data.val_dataloader() if role == "val" else data.predict_dataloader()
        return data.on_after_batch_transfer(data.transfer_batch_to_device(next(iter(loader)), device, 0), 0)

    return on


def make_task(loss=None):
    torch.manual_seed(0)
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, SYNTHETIC_CLASSES, loss=loss).eval()
    task.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    return task


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(class_weights=[1.0] * len(SYNTHETIC_CLASSES), label_smoothing=0.1),
        FocalLoss(),
        SumOfLosses([CrossEntropy(), Dice()]),
    ],
    ids=["cross-entropy", "focal", "sum"],
)
def test_an_evaluation_batch_is_read_from_the_device_once(loss, batches):
    task = make_task(loss)
    with torch.no_grad():
        on_cpu = task.validation_step(batches("val", torch.device("cpu")), 0)
        expected = task.metrics["val"].compute()
        task.metrics["val"].reset()
        with Device() as device:
            task.to(DEVICE)
            batch = batches("val", DEVICE)
            assert len({tuple(size) for size in batch["input_size"].tolist()}) > 1  # several groups in the network
            device.waits.clear()
            outputs = task.validation_step(batch, 0)
            assert device.waits == ["_to_copy"]
            masks = labelled_images(outputs)
            assert device.waits == ["_to_copy"] * 2
            result = task.metrics["val"].compute()
    assert result.miou == expected.miou
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    for (index, _, labels), wanted, other in zip(masks, on_cpu["labels"], on_cpu["index"], strict=True):
        assert index == other
        assert torch.equal(torch.from_numpy(labels), wanted.to(torch.uint8))


def test_only_the_wanted_label_maps_are_read_from_the_device(batches):
    task = make_task()
    with torch.no_grad(), Device() as device:
        task.to(DEVICE)
        outputs = task.validation_step(batches("val", DEVICE), 0)
        device.waits.clear()
        ((index, position, _),) = labelled_images(outputs, [outputs["index"][1]])
        assert (index, position, device.waits) == (outputs["index"][1], 1, ["_to_copy"])
        assert labelled_images(outputs, []) == []
        assert device.waits == ["_to_copy"]


@pytest.mark.parametrize("inference", [Inference(), Inference([0.5, 1.0], flip=True)], ids=str)
def test_a_batch_of_predictions_is_read_from_the_device_once(inference, batches):
    task = make_task()
    task.inference = inference
    with torch.no_grad():
        expected = task.predict_step(batches("predict", torch.device("cpu")), 0)
        with Device() as device:
            task.to(DEVICE)
            batch = batches("predict", DEVICE)
            device.waits.clear()
            predicted = task.predict_step(batch, 0)
            assert device.waits == []
            maps = to_arrays(predicted)
            assert device.waits == ["_to_copy"]
    assert [labels.tolist() for labels in maps] == [labels.tolist() for labels in expected]
