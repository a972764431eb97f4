import copy
import pickle
import subprocess
import sys
import textwrap
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from vocseg import (
    CrossEntropy,
    DeconvDecoder,
    FocalLoss,
    ResNet,
    Schedule,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    VOCDataModule,
    VocsegError,
)
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.data.transforms import normalise_batch
from vocseg.lightning_cli import run as run_command_line

CLASSES = ["background", "a", "b"]


def small(**settings):
    backbone = settings.pop("backbone", None) or StridedEncoder(widths=(4, 8))
    return SegmentationTask(backbone, SkipDecoder, settings.pop("class_names", CLASSES), **settings)


def trainer(tmp_path, **settings):
    settings = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, **settings}
    return L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, **settings)


def test_without_the_command_line_too_worker_processes_change_nothing(voc_root, tmp_path):
    """Not even dropout, whose random state is that of the process."""
    trained = []
    for workers in (0, 2):
        L.seed_everything(0)
        data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=64, batch_size=2, num_workers=workers)
        task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, SYNTHETIC_CLASSES)
        trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(task, datamodule=data)
        trained.append(torch.cat([parameter.flatten() for parameter in task.parameters()]))
    assert torch.equal(*trained)


def tuples(count=6):
    """Plain (image, mask) batches, as any DataLoader gives them."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (count, 20, 24), generator=generator)
    masks[0, :5] = 255
    return DataLoader(TensorDataset(torch.rand(count, 3, 20, 24, generator=generator), masks), batch_size=2)


def test_plain_tuples_train_and_validate(tmp_path):
    task = small()
    run = trainer(tmp_path)
    run.fit(task, tuples(), tuples())
    assert {"train/loss", "val/loss", "val/miou", "val/pixel_accuracy", "val/iou/a"} <= set(run.callback_metrics)
    assert len(task.results["val"].matrices) == 6


def test_scores_are_taken_at_each_images_own_size(voc_root, tmp_path):
    """Logits resized to the image, argmax, against the untouched mask: repeated here by hand, image by image."""
    from PIL import Image
    from torch.nn import functional as F

    data = VOCDataModule(
        root=voc_root, class_names=list(SYNTHETIC_CLASSES), image_size=40, batch_size=2, num_workers=0,
        eval_transforms="keep_ratio",
    )  # fmt: skip
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, data.class_names).eval()
    trainer(tmp_path).validate(task, data, verbose=False)
    counts = np.zeros((len(SYNTHETIC_CLASSES),) * 2)
    loss, valid_pixels = 0.0, 0
    for number, sample in enumerate(data.datasets["val"].samples):
        item = normalise_batch(data.datasets["val"][number])
        with torch.no_grad():
            logits = task(item["image"][None])
        truth = np.array(Image.open(sample.mask))
        resized = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
        valid = truth != 255
        np.add.at(counts, (truth[valid], resized[0].argmax(0).numpy()[valid]), 1)
        loss += F.cross_entropy(logits, item["mask"][None], ignore_index=255, reduction="sum").item()
        valid_pixels += (item["mask"] != 255).sum().item()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    result = task.results["val"]
    assert result.miou == pytest.approx((counts.diagonal() / union)[union > 0].mean(), abs=1e-5)
    assert result.pixel_accuracy == pytest.approx(counts.trace() / counts.sum(), abs=1e-5)
    assert result.loss == pytest.approx(loss / valid_pixels, rel=1e-5)


def test_loaders_without_their_data_module_are_refused_in_words(voc_root, tmp_path):
    data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=32, batch_size=2, num_workers=0)
    data.setup("fit")
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, data.class_names)
    with pytest.raises(VocsegError, match=r"uint8.*give the trainer the data module.*on_after_batch_transfer"):
        trainer(tmp_path).fit(task, data.train_dataloader())
    batch = next(iter(data.train_dataloader()))
    assert task(data.on_after_batch_transfer(batch, 0)["image"]).shape == (2, len(SYNTHETIC_CLASSES), 32, 32)


def test_all_void_batches_train_with_loss_zero(tmp_path):
    void = DataLoader(TensorDataset(torch.rand(2, 3, 8, 8), torch.full((2, 8, 8), 255)), batch_size=2)
    task = small()
    run = trainer(tmp_path)
    run.fit(task, void, void)
    assert run.callback_metrics["train/loss"] == 0
    assert run.callback_metrics["val/loss"] == 0
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_a_task_without_trainable_parameters_is_refused(tmp_path):
    task = small(backbone=StridedEncoder(widths=(4, 8), freeze=True))
    for parameter in task.decoder.parameters():
        parameter.requires_grad = False
    with pytest.raises(VocsegError, match="Nothing is left to train"):
        trainer(tmp_path).fit(task, tuples())


def test_checkpoints_of_other_classes_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.fit(small(), tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    other = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["x", "y", "z"])
    with pytest.raises(VocsegError, match=r"trained on 3 classes \(background, a, b\)"):
        run.validate(other, tuples(), ckpt_path=tmp_path / "c.ckpt")


def test_pretrained_weights_are_read_only_by_the_first_fit(tmp_path):
    source = ResNet(18)
    torch.save({**source.state_dict(), "fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    task = small(backbone=ResNet(18, weights=str(tmp_path / "weights.pth"), freeze=True))
    run = trainer(tmp_path)
    run.fit(task, tuples())
    assert torch.equal(task.backbone.conv1.weight, source.conv1.weight)
    run.save_checkpoint(tmp_path / "c.ckpt")
    (tmp_path / "weights.pth").unlink()
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    assert torch.equal(loaded.backbone.conv1.weight, source.conv1.weight)
    trainer(tmp_path, max_epochs=2).fit(loaded, tuples(), ckpt_path=tmp_path / "c.ckpt")  # resumes
    new = small(backbone=ResNet(18, weights=str(tmp_path / "weights.pth"), freeze=True))
    trainer(tmp_path, max_epochs=2).fit(new, tuples(), ckpt_path=tmp_path / "c.ckpt")  # as the command line does
    assert torch.equal(new.backbone.conv1.weight, source.conv1.weight)
    trainer(tmp_path).fit(SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt"), tuples())  # fine-tunes


class Counted(L.LightningDataModule):
    """A data module of a user that says how often each class occurs; class a never does."""

    class_counts = torch.tensor([900, 0, 100])

    def train_dataloader(self):
        return tuples()


@pytest.mark.parametrize("loss", [CrossEntropy("inverse_frequency"), FocalLoss(1.5, "inverse_frequency")])
def test_class_weights_are_counted_once_and_saved_in_the_checkpoint(loss, tmp_path, caplog):
    run = trainer(tmp_path)
    run.fit(small(loss=loss), datamodule=Counted())
    assert caplog.text.count("No pixel of the training split is a:") == 1
    run.save_checkpoint(tmp_path / "c.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    assert type(loaded.loss) is type(loss)
    assert loaded.loss.class_weights.tolist() == pytest.approx([0.1, 0.9, 0.9])
    trainer(tmp_path, max_epochs=2).fit(loaded, tuples(), ckpt_path=tmp_path / "c.ckpt")  # needs no counts again


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "'a' more than once"),
        ([f"c{label}" for label in range(300)], "must name 2 to 254 classes, got 300"),
        (["alone"], "must name 2 to 254 classes, got 1"),
        ([], "must name 2 to 254 classes, got 0"),
        (["a", 2], "not a string"),
    ],
)
def test_class_names_that_labels_of_8_bits_or_scores_cannot_have_are_refused(names, message):
    with pytest.raises(VocsegError, match=message):
        small(class_names=names)


def test_masks_of_fractions_are_refused(tmp_path):
    masks = torch.full((4, 16, 16), 0.5)
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 16, 16), masks), batch_size=2)
    with pytest.raises(VocsegError, match=r"have the value 0\.5: labels are whole numbers"):
        trainer(tmp_path, max_epochs=1).fit(small(class_names=["a", "b"]), loader)
    whole = DataLoader(TensorDataset(torch.randn(4, 3, 16, 16), masks.ceil()), batch_size=2)
    trainer(tmp_path, max_epochs=1).fit(small(class_names=["a", "b"]), whole)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_every_precision_trains_scores_and_predicts(precision, tmp_path, voc_root):
    data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=32, batch_size=4, num_workers=0)
    task = small(class_names=SYNTHETIC_CLASSES)
    runner = trainer(tmp_path, max_epochs=1, precision=precision)
    runner.fit(task, data)
    assert runner.callback_metrics["train/loss"].isfinite()
    runner.test(task, data, verbose=False)
    assert 0 <= task.results["test"].miou <= 1


def test_class_weights_by_frequency_need_class_counts(tmp_path):
    with pytest.raises(VocsegError, match="class_counts"):
        trainer(tmp_path).fit(small(loss=CrossEntropy("inverse_frequency")), tuples())


def test_the_number_of_class_weights_must_be_the_number_of_classes():
    with pytest.raises(VocsegError, match="2 numbers for 3 classes"):
        small(loss=CrossEntropy([0.5, 0.5]))


USER_CODE = """
from torch import nn

class Plain(nn.Module):
    channels, strides = [5], [2]

    def __init__(self, kernel_size=3):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, kernel_size, stride=2, padding=kernel_size // 2)

    def forward(self, image):
        return [self.layer(image)]

class Bare(Plain):
    def __init__(self):
        super().__init__(5)
"""


def in_a_fresh_process(code, folder):
    script = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """A module of the user's own, importable from tmp_path."""
    (tmp_path / "user_code.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import user_code

    yield user_code
    del sys.modules["user_code"]


def test_checkpoints_load_in_a_fresh_process_with_safe_loading(tmp_path, user_code):
    """A user's own backbone, a partial optimizer, our decoder: nothing is passed again."""
    task = SegmentationTask(
        user_code.Bare(),
        partial(DeconvDecoder, activation="leaky_relu", widths=(4,)),
        CLASSES,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        backbone_lr=1e-4,
    )
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    torch.load(tmp_path / "c.ckpt", weights_only=True)
    image = torch.rand(1, 3, 9, 11)
    torch.save({"image": image, "logits": task.eval()(image).detach()}, tmp_path / "expected.pt")
    done = in_a_fresh_process(
        """
        import torch
        from vocseg import SegmentationTask
        task = SegmentationTask.load_from_checkpoint("c.ckpt").eval()
        expected = torch.load("expected.pt")
        assert torch.equal(task(expected["image"]), expected["logits"])
        assert type(task.backbone).__name__ == "Bare" and task.decoder.head.in_channels == 4
        assert task.optimizer.func is torch.optim.AdamW and task.optimizer.keywords["lr"] == 3e-3
        print(task.class_names, task.backbone_lr)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "['background', 'a', 'b'] 0.0001"


def test_a_component_that_could_not_be_recorded_is_passed_again(tmp_path, user_code):
    run = trainer(tmp_path)
    task = SegmentationTask(user_code.Plain(5), SkipDecoder, CLASSES)
    run.fit(task, tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(VocsegError, match=r"user_code\.Plain.*load_from_checkpoint\(path, backbone="):
        SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt", backbone=user_code.Plain(5))
    assert torch.equal(again.backbone.layer.weight, task.backbone.layer.weight)


def test_a_backbone_that_cannot_be_imported_names_its_module(tmp_path, user_code):
    run = trainer(tmp_path)
    run.fit(SegmentationTask(user_code.Bare(), SkipDecoder, CLASSES), tuples())
    (tmp_path / "elsewhere").mkdir()
    run.save_checkpoint(tmp_path / "elsewhere" / "c.ckpt")
    done = in_a_fresh_process(
        "from vocseg import SegmentationTask; SegmentationTask.load_from_checkpoint('c.ckpt')", tmp_path / "elsewhere"
    )
    assert done.returncode != 0
    assert "No module named 'user_code'" in done.stderr
    assert "PYTHONPATH" in done.stderr


def test_a_reloaded_task_records_the_same_and_saves_again(tmp_path):
    task = small(optimizer=torch.optim.SGD)
    run = trainer(tmp_path)
    run.fit(task, tuples())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(again.hparams) == dict(task.hparams)


def test_a_finished_decoder_and_any_loss_serve(tmp_path):
    backbone = StridedEncoder(widths=(4, 8))
    decoder = SkipDecoder(backbone.channels, backbone.strides, 3, width=8)
    task = SegmentationTask(backbone, decoder, CLASSES, loss=nn.CrossEntropyLoss(ignore_index=255))
    run = trainer(tmp_path)
    run.fit(task, tuples(), tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    loss = nn.CrossEntropyLoss(ignore_index=255)
    again = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt", loss=loss)
    assert again.decoder.reduce[0].out_channels == 8


class CountsEpochs(StridedEncoder):
    """A backbone that asks its trainer for the epoch."""

    def forward(self, image):
        assert self.trainer.current_epoch >= 0
        return super().forward(image)


def test_backbone_and_decoder_know_the_trainer(tmp_path):
    trainer(tmp_path).fit(small(backbone=CountsEpochs(widths=(4, 8))), tuples(), tuples())


def copies(task, folder):
    torch.save(task, folder / "task.pt")
    yield torch.load(folder / "task.pt", weights_only=False)
    yield copy.deepcopy(task)
    yield pickle.loads(pickle.dumps(task))


def assert_can_be_copied(task, folder, data):
    image = torch.rand(1, 3, 13, 18)
    for other in copies(task, folder):
        assert torch.equal(other.eval()(image), task.eval()(image))
        assert dict(other.hparams) == dict(task.hparams)
        other.train()
        before = other.decoder.head[1].weight.detach().clone()
        trainer(folder, max_steps=1, enable_checkpointing=False).fit(other, **data)
        assert not torch.equal(other.decoder.head[1].weight, before)
        assert not torch.equal(other.decoder.head[1].weight, task.decoder.head[1].weight)


@pytest.mark.parametrize("schedule", [None, Schedule("cosine"), partial(StepLR, step_size=1)])
def test_a_task_can_be_saved_and_copied_before_and_after_a_fit(schedule, tmp_path):
    task = small(schedule=schedule)
    data = {"train_dataloaders": tuples(), "val_dataloaders": tuples()}
    assert_can_be_copied(task, tmp_path, data)
    trainer(tmp_path).fit(task, **data)
    assert_can_be_copied(task, tmp_path, data)


def test_a_task_that_the_command_line_built_can_be_saved_and_copied(fit_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.max_epochs", "1", "--model.schedule", "StepLR", "--model.schedule.step_size", "1"]
    command_line = run_command_line([*fit_flags, *flags])
    assert_can_be_copied(command_line.model, tmp_path, {"datamodule": command_line.datamodule})


def test_a_checkpoint_of_vocseg_0_1_loads_and_resumes(tmp_path):
    """Its keys have no ``network``, and it has no entry of vocseg's own."""

    def fitted(epochs, **settings):
        torch.manual_seed(0)
        decoder = partial(SkipDecoder, width=4, dropout=0.0)
        task = SegmentationTask(StridedEncoder(widths=(4, 8)), decoder, CLASSES, schedule=Schedule("cosine", length=9))
        run = trainer(tmp_path, max_epochs=epochs)
        run.fit(task, tuples(), tuples(), **settings)
        return run

    whole = fitted(3)
    fitted(2).save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    own = checkpoint.pop("vocseg")
    old_keys = {key: key.removeprefix("network.") for key in checkpoint["state_dict"]}
    assert {key.partition(".")[0] for key in old_keys.values()} >= {"backbone", "decoder"}
    checkpoint["state_dict"] = {old_keys[key]: value for key, value in checkpoint["state_dict"].items()}
    checkpoint["train_loss"] = own["train_loss"]
    checkpoint["lr_schedulers"][0]["lr_lambdas"] = [None, None]  # the class of the scheduler was another
    torch.save(checkpoint, tmp_path / "old.ckpt")

    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True).eval()
    current = SegmentationTask.load_from_checkpoint(tmp_path / "new.ckpt", weights_only=True).eval()
    image = torch.rand(1, 3, 13, 18)
    assert torch.equal(loaded(image), current(image))

    resumed = fitted(3, ckpt_path=tmp_path / "old.ckpt", weights_only=True)
    for before, after in zip(whole.lightning_module.parameters(), resumed.lightning_module.parameters(), strict=True):
        assert torch.equal(before, after)
