from functools import partial

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoringReduceLROnPlateau
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from vocseg import Schedule, SegmentationTask, SkipDecoder, StridedEncoder, VocsegError
from vocseg.data.synthetic import SYNTHETIC_CLASSES


def factors(schedule, length, count):
    return [schedule.factor(position, length) for position in range(count)]


def test_poly_equals_that_of_deeplab():
    assert factors(Schedule("poly", power=0.9), 10, 10) == pytest.approx([(1 - t / 10) ** 0.9 for t in range(10)])


def test_cosine_equals_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert factors(Schedule("cosine"), 8, 8) == pytest.approx(expected)


@pytest.mark.parametrize("growth", [1, 2])
def test_cosine_with_restarts_equals_that_of_torch(growth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=growth)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert factors(Schedule("cosine_restarts", cycle=3, cycle_growth=growth), 0, 12) == pytest.approx(expected)


def test_warmup_grows_to_the_full_learning_rate_which_is_never_zero_before_the_end():
    found = factors(Schedule("poly", warmup=4), 20, 20)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found == sorted(found[:5]) + sorted(found[5:], reverse=True)
    assert min(found) > 0


def test_after_its_length_the_learning_rate_stays():
    assert factors(Schedule("cosine", length=4), 4, 7)[4:] == [0, 0, 0]


@pytest.mark.parametrize("settings", [{"length": 0}, {"length": -1}, {"warmup": -1}, {"warmup": 5, "length": 5}])
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(VocsegError, match="schedule's"):
        Schedule("poly", **settings)


@pytest.mark.parametrize("settings", [{}, {"cycle": 0}, {"cycle": 5, "cycle_growth": 0.5}])
def test_impossible_restarts_are_refused(settings):
    with pytest.raises(VocsegError, match="cycle of at least 1 step"):
        Schedule("cosine_restarts", **settings)


def test_a_run_without_end_needs_a_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    endless = L.Trainer(max_epochs=-1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(VocsegError, match="max_epochs"):
        Schedule("cosine", interval="epoch").attach(optimizer, endless)
    assert Schedule("cosine", length=3).attach(optimizer, endless)["interval"] == "step"


@pytest.mark.parametrize("settings", [{"kind": "cosin"}, {"interval": "batch"}])
def test_unknown_kinds_and_intervals_are_refused(settings):
    with pytest.raises(VocsegError, match=r"There is no schedule (kind 'cosin'.*'cosine'|interval 'batch'; there are)"):
        Schedule(**settings)


def batches():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(4, 3, 8, 8, generator=generator), torch.zeros(4, 8, 8).long()), 2)


def fitted(schedule, folder, val=True, **settings):
    task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, ["background", "a"], schedule=schedule)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(task, batches(), batches() if val else None)
    return trainer


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (lr_scheduler.LinearLR, "epoch"),
        (partial(lr_scheduler.StepLR, step_size=1), "epoch"),
        (partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6), "step"),
        (partial(lr_scheduler.CyclicLR, base_lr=1e-4, max_lr=1e-2), "step"),
    ],
)
def test_schedulers_of_torch_step_in_their_own_interval(schedule, interval, tmp_path):
    trainer = fitted(schedule, tmp_path)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert trainer.lr_scheduler_configs[0].interval == interval
    assert scheduler.last_epoch == (6 if interval == "step" else 3)


def test_reduce_on_plateau_steps_after_every_validation(tmp_path):
    """Not after the validation before the first step, and also where an epoch has several."""
    scheduler = fitted(lr_scheduler.ReduceLROnPlateau, tmp_path).lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 3
    scheduler = fitted(lr_scheduler.ReduceLROnPlateau, tmp_path, val_check_interval=1).lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 6
    trainer = fitted(lr_scheduler.ReduceLROnPlateau, tmp_path, check_val_every_n_epoch=2)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1


def test_reduce_on_plateau_follows_the_loss_the_miou_or_the_score_that_it_names(tmp_path):
    for schedule, score in (
        (lr_scheduler.ReduceLROnPlateau, "loss"),
        (partial(lr_scheduler.ReduceLROnPlateau, mode="max"), "miou"),
        (partial(MonitoringReduceLROnPlateau, monitor="val/pixel_accuracy", mode="max"), "pixel_accuracy"),
    ):
        trainer = fitted(schedule, tmp_path, num_sanity_val_steps=0, limit_val_batches=1)
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        best = max if scheduler.mode == "max" else min
        result = getattr(trainer.lightning_module.results["val"], score)
        assert scheduler.best == best(scheduler.best, result)
    with pytest.raises(VocsegError, match=r"logs no 'val/mio'.*'val/miou'"):
        fitted(partial(MonitoringReduceLROnPlateau, monitor="val/mio"), tmp_path)


def test_reduce_on_plateau_needs_a_validation(tmp_path):
    with pytest.raises(VocsegError, match="no validation"):
        fitted(lr_scheduler.ReduceLROnPlateau, tmp_path, val=False)
    with pytest.raises(VocsegError, match="no validation"):
        fitted(lr_scheduler.ReduceLROnPlateau, tmp_path, limit_val_batches=0)


ON_THE_COMMAND_LINE = {
    "kind": (["--model.schedule.kind", "cosine"], "FactorLR"),
    "Schedule": (["--model.schedule", "Schedule", "--model.schedule.kind", "cosine"], "FactorLR"),
    "YAML kind": ({"kind": "cosine"}, "FactorLR"),
    "YAML null": (None, "FactorLR"),
    "StepLR": (["--model.schedule", "StepLR", "--model.schedule.step_size", "1"], "StepLR"),
    "full path": (
        ["--model.schedule", "torch.optim.lr_scheduler.CosineAnnealingLR", "--model.schedule.T_max", "3"],
        "CosineAnnealingLR",
    ),
    "YAML LinearLR": ({"class_path": "LinearLR", "init_args": {"total_iters": 2}}, "LinearLR"),
    "OneCycleLR": (
        ["--model.schedule", "OneCycleLR", "--model.schedule.max_lr", "0.1", "--model.schedule.total_steps", "9"],
        "OneCycleLR",
    ),
    "ReduceLROnPlateau": (["--model.schedule", "torch.optim.lr_scheduler.ReduceLROnPlateau"], "ReduceLROnPlateau"),
}


@pytest.mark.parametrize("case", ON_THE_COMMAND_LINE)
def test_the_command_line_takes_any_schedule_and_its_checkpoint_resumes(case, vocseg, voc_root, tmp_path):
    given, scheduler = ON_THE_COMMAND_LINE[case]
    flags = given if isinstance(given, list) else ["--config", "schedule.yaml"]
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump({"model": {"schedule": given}}))
    fit = [
        *("fit", "--data.root", voc_root, "--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]", "--name", "run"),
        *("--data.num_workers", 0, "--data.image_size", 16, "--data.batch_size", 2, "--figures.every_n_epochs", 0),
        *("--model.backbone", "StridedEncoder", "--model.backbone.widths", "[4]", "--model.decoder", "SkipDecoder"),
        *("--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1, "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", *flags),
    ]
    assert vocseg(*fit, "--trainer.max_epochs", 1)[0] == 0
    checkpoint = tmp_path / "lightning_logs" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["vocseg"]["schedule_settings"]["class"] == scheduler
    for words in (fit, ["fit", "--name", "run"]):  # the checkpoint alone says enough, too
        status, _, err = vocseg(*words, "--ckpt_path", checkpoint, "--trainer.max_epochs", 2)
        assert status == 0, err
        assert "model" not in err  # no setting of it has changed
    (state,) = torch.load(checkpoint, weights_only=True)["lr_schedulers"]
    assert state["last_epoch"] == 2
    loaded = SegmentationTask.load_from_checkpoint(checkpoint).schedule
    assert isinstance(loaded, Schedule) if scheduler == "FactorLR" else loaded.func.__name__ == scheduler
