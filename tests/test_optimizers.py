from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from vocseg import MobileNetV2, ResNet, Schedule, SegmentationTask, SkipDecoder, StridedEncoder, VocsegError
from vocseg.optimizers import layers_of, parameter_groups

CLASSES = ["background", "a", "b"]
STEPS = 3
"""Optimizer steps of an epoch."""

SCHEDULES = {
    "none": None,
    "poly by step": Schedule("poly", warmup=2),
    "cosine by epoch": Schedule("cosine", interval="epoch"),
    "LinearLR": lr_scheduler.LinearLR,
    "StepLR": partial(lr_scheduler.StepLR, step_size=2),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[1, 3]),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.5),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=3),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=4 * STEPS),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=1e-4, max_lr=1e-2, step_size_up=4),
    # a threshold that no score reaches: the learning rate falls after every validation but the first
    "ReduceLROnPlateau, min": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=9.0, threshold_mode="abs"),
    "ReduceLROnPlateau, max": partial(
        lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, threshold=9.0, threshold_mode="abs"
    ),
}


class LearningRates(Callback):
    """The learning rates of each step, one per parameter group."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, *_):
        self.values.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2 * STEPS, 3, 8, 8, generator=generator)
    masks = torch.randint(0, 3, (2 * STEPS, 8, 8), generator=generator)
    return DataLoader(TensorDataset(images, masks), batch_size=2)


def fit(folder, epochs=4, ckpt_path=None, at_epoch_end=True, **settings):
    """Trains, and saves a checkpoint ``epoch=N.ckpt`` in each epoch; returns the trainer and all learning rates."""
    torch.manual_seed(0)
    settings = {"optimizer": partial(torch.optim.Adam, lr=1e-2), "backbone_lr": 2e-3, **settings}
    backbone, decoder = settings.pop("backbone", None), partial(SkipDecoder, width=4, dropout=0.0)
    task = SegmentationTask(backbone or StridedEncoder(widths=(4,)), decoder, CLASSES, **settings)
    rates = LearningRates()
    folder = folder / "resumed" if ckpt_path else folder
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end)
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[rates, save], accelerator="cpu", logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, batches(), batches(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, rates.values


def parameters(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.lightning_module.parameters()])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_equals_an_uninterrupted_one_with_any_schedule(name, tmp_path):
    whole, rates = fit(tmp_path, schedule=SCHEDULES[name])
    resumed, rates_after = fit(tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt", schedule=SCHEDULES[name])
    assert rates_after == rates[2 * STEPS :]
    assert torch.equal(parameters(resumed), parameters(whole))
    assert name == "none" or rates[0] != rates[-1]


@pytest.mark.parametrize("name", ["cosine by epoch", "StepLR", "ReduceLROnPlateau, min"])
def test_a_run_resumes_from_a_checkpoint_written_after_validation(name, tmp_path):
    """Which is before the end of the epoch."""
    whole, rates = fit(tmp_path, schedule=SCHEDULES[name], at_epoch_end=False)
    resumed, rates_after = fit(tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt", schedule=SCHEDULES[name])
    assert rates_after == rates[2 * STEPS :]
    assert torch.equal(parameters(resumed), parameters(whole))


@pytest.mark.parametrize("name", ["none", "StepLR", "OneCycleLR"])
def test_a_task_loaded_from_its_checkpoint_resumes(name, tmp_path):
    """It builds its schedule from the checkpoint."""
    whole, _ = fit(tmp_path, schedule=SCHEDULES[name])
    task = SegmentationTask.load_from_checkpoint(tmp_path / "epoch=1.ckpt")
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(task, batches(), batches(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert torch.equal(parameters(trainer), parameters(whole))


@pytest.mark.parametrize("name", ["none", "poly by step", "cosine by epoch", "StepLR", "CosineAnnealingLR"])
def test_a_changed_learning_rate_keeps_its_position_in_the_schedule(name, tmp_path):
    _, rates = fit(tmp_path, schedule=SCHEDULES[name])
    trainer, rates_after = fit(
        tmp_path,
        ckpt_path=tmp_path / "epoch=1.ckpt",
        schedule=SCHEDULES[name],
        optimizer=partial(torch.optim.Adam, lr=3e-2, weight_decay=0.1),
    )
    # three times that of the decoder, and the backbone's unchanged
    expected = [[backbone, pytest.approx(3 * decoder)] for backbone, decoder in rates[2 * STEPS :]]
    assert rates_after == expected
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.1]


def test_a_changed_learning_rate_stays_reduced_where_a_plateau_was_reached(tmp_path):
    schedule = SCHEDULES["ReduceLROnPlateau, min"]
    _, rates = fit(tmp_path, schedule=schedule)
    _, rates_after = fit(tmp_path, ckpt_path=tmp_path / "epoch=2.ckpt", schedule=schedule, backbone_lr=4e-3)
    assert rates_after == [[pytest.approx(2 * backbone), decoder] for backbone, decoder in rates[3 * STEPS :]]


def test_a_changed_kind_of_schedule_takes_effect_at_its_position(tmp_path):
    _, cosine = fit(tmp_path / "cosine", schedule=Schedule("cosine"))
    fit(tmp_path)
    _, rates_after = fit(tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt", schedule=Schedule("cosine"))
    assert rates_after == cosine[2 * STEPS :]


def test_changed_settings_of_a_torch_scheduler_take_effect(tmp_path):
    _, rates = fit(tmp_path, schedule=partial(lr_scheduler.StepLR, step_size=1))
    checkpoint = tmp_path / "epoch=1.ckpt"
    _, rates_after = fit(tmp_path, ckpt_path=checkpoint, schedule=partial(lr_scheduler.StepLR, step_size=1, gamma=0.5))
    first, second = rates_after[0][1], rates_after[STEPS][1]
    assert first == rates[2 * STEPS][1]
    assert second == pytest.approx(first / 2)


def test_a_changed_peak_of_one_cycle_takes_effect(tmp_path):
    def one_cycle(peak):
        return partial(lr_scheduler.OneCycleLR, max_lr=peak, total_steps=4 * STEPS)

    _, high = fit(tmp_path / "high", schedule=one_cycle(0.2))
    fit(tmp_path, schedule=one_cycle(0.1))
    _, rates_after = fit(tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt", schedule=one_cycle(0.2))
    assert rates_after == [pytest.approx(rates) for rates in high[2 * STEPS :]]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("none", "StepLR", "Schedule with the interval step, but the configured one is StepLR with the interval epoch"),
        ("StepLR", "CyclicLR", "StepLR with the interval epoch, but the configured one is CyclicLR"),
        ("poly by step", "cosine by epoch", "interval step, but the configured one is Schedule with the interval"),
    ],
)
def test_a_resumed_run_keeps_class_and_interval_of_its_schedule(before, after, message, tmp_path):
    fit(tmp_path, epochs=1, schedule=SCHEDULES[before])
    with pytest.raises(VocsegError, match=message):
        fit(tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt", schedule=SCHEDULES[after])


def test_a_resumed_run_keeps_the_class_of_its_optimizer(tmp_path):
    fit(tmp_path, epochs=1)
    with pytest.raises(VocsegError, match=r"trained with torch\.optim\.adam\.Adam, but the configured optimizer is"):
        fit(tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt", optimizer=partial(torch.optim.SGD, lr=1e-2))


def test_parameter_groups_hold_what_requires_gradients():
    parts = {"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2), "frozen": torch.nn.Linear(2, 2)}
    parts["frozen"].requires_grad_(False)
    parts["second"].bias.requires_grad_(False)
    groups = parameter_groups(parts, {"first": 0.1, "second": None})
    assert [(group["name"], len(group["params"]), group.get("lr")) for group in groups] == [
        ("first", 2, 0.1),
        ("second", 1, None),
    ]
    with pytest.raises(VocsegError, match="Nothing is left to train"):
        parameter_groups({"frozen": parts["frozen"]}, {})


def shapes(groups):
    return {group["name"]: [len(group["params"]), group["lr"], group["weight_decay"]] for group in groups}


def test_norms_and_biases_have_their_own_weight_decay(tmp_path):
    adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    whole = fit(tmp_path, optimizer=adamw, epochs=1)[0].optimizers[0].param_groups
    split = fit(tmp_path, optimizer=adamw, epochs=1, norm_weight_decay=0.0)[0].optimizers[0].param_groups
    assert list(shapes(whole)) == ["backbone", "decoder"]
    assert shapes(split)["backbone"] == [1, 2e-3, 0.1]
    assert shapes(split)["backbone/norms"] == [3, 2e-3, 0.0]
    assert shapes(split)["decoder/norms"][1:] == [1e-2, 0.0]
    assert all((value.ndim <= 1) == group["name"].endswith("norms") for group in split for value in group["params"])
    assert sum(len(group["params"]) for group in split) == sum(len(group["params"]) for group in whole)


def test_layers_of_networks():
    """Of ResNet-34 the stem and 3 + 4 + 6 + 3 blocks, of MobileNetV2 all 19 blocks."""
    for network, count in ((ResNet(34), 17), (MobileNetV2(), 19), (StridedEncoder(), 5), (torch.nn.Linear(2, 2), 1)):
        layers = layers_of(network)
        assert len(layers) == count
        flat = [parameter for layer in layers for parameter in layer]
        assert list(map(id, flat)) == list(map(id, network.parameters()))


class Transformer(torch.nn.Module):
    """The layout of a vision transformer."""

    channels, strides = [4], [2]

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Module()
        self.net.positions = torch.nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.net.patches = torch.nn.Conv2d(3, 4, 2, 2)
        self.net.blocks = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 1) for _ in range(2)))
        self.net.norm = torch.nn.BatchNorm2d(4)

    def forward(self, image):
        return [self.net.norm(self.net.blocks(self.net.patches(image) + self.net.positions))]


@pytest.mark.parametrize("backbone_lr", [0.4, None])
def test_the_learning_rates_of_a_backbones_layers_fall_towards_the_image(backbone_lr):
    decoder, optimizer = partial(SkipDecoder, width=4), partial(torch.optim.SGD, lr=0.8)
    task = SegmentationTask(
        Transformer(), decoder, CLASSES, optimizer=optimizer, backbone_lr=backbone_lr, layer_decay=0.5,
        norm_weight_decay=0.0,
    )  # fmt: skip
    task.trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    groups = task.configure_optimizers()["optimizer"].param_groups
    rate = backbone_lr or 0.8
    assert {name: values[:2] for name, values in shapes(groups).items()} == {
        "backbone/0": [2, rate / 4],
        "backbone/0/norms": [1, rate / 4],
        "backbone/1": [1, rate / 2],
        "backbone/1/norms": [1, rate / 2],
        "backbone/2": [1, rate],
        "backbone/2/norms": [3, rate],
        "decoder": [3, 0.8],
        "decoder/norms": [4, 0.8],
    }


def test_the_learning_rate_finder_keeps_the_ratios_of_layers(tmp_path):
    trainer, _ = fit(tmp_path, epochs=1, backbone_lr=None, layer_decay=0.5, backbone=StridedEncoder(widths=(4, 4)))
    trainer.lightning_module.lr = 0.1
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == {"backbone/0": 0.05, "backbone/1": 0.1, "decoder": 0.1}


def test_a_run_with_split_groups_resumes_and_cannot_lose_them(tmp_path):
    split = {"norm_weight_decay": 0.0, "layer_decay": 0.5, "backbone": StridedEncoder(widths=(4, 4))}
    split["optimizer"] = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    expected, rates = fit(tmp_path, epochs=2, **split)
    split["backbone"] = StridedEncoder(widths=(4, 4))
    resumed, rates_after = fit(tmp_path, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt", **split)
    assert rates_after == rates[STEPS:]
    assert torch.equal(parameters(expected), parameters(resumed))
    task = SegmentationTask.load_from_checkpoint(tmp_path / "epoch=0.ckpt")
    assert (task.norm_weight_decay, task.layer_decay) == (0.0, 0.5)
    split.update(layer_decay=None, backbone=StridedEncoder(widths=(4, 4)))
    with pytest.raises(VocsegError, match="layer_decay be set or not, as before"):
        fit(tmp_path, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt", **split)


@pytest.mark.parametrize("setting", [{"layer_decay": 0}, {"layer_decay": 1.1}, {"norm_weight_decay": -0.1}])
def test_decays_that_make_no_sense_are_refused(setting):
    with pytest.raises(VocsegError, match=f"{next(iter(setting))} must be"):
        SegmentationTask(StridedEncoder(), SkipDecoder, CLASSES, **setting)
