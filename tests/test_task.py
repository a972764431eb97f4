import subprocess
import sys
import textwrap

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vocseg import (
    CrossEntropy,
    DeconvDecoder,
    FocalLoss,
    ResNet,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    VOCDataModule,
    VocsegError,
)
from vocseg import task as task_module
from vocseg.data.datasets import collate
from vocseg.data.synthetic import SYNTHETIC_CLASSES

CLASSES = ["background", "a", "b"]


def small(**settings):
    backbone = settings.pop("backbone", None) or StridedEncoder(widths=(4, 8))
    return SegmentationTask(backbone, SkipDecoder, CLASSES, **settings)


def trainer(tmp_path, **settings):
    settings = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, **settings}
    return L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, **settings)


def test_in_python_too_worker_processes_change_nothing(voc_root, tmp_path):
    """Not even what a network draws itself: dropout."""
    trained = []
    for workers in (0, 2):
        L.seed_everything(0)
        data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=64, batch_size=2, num_workers=workers)
        task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, SYNTHETIC_CLASSES)
        trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(task, datamodule=data)
        trained.append(torch.cat([parameter.flatten() for parameter in task.parameters()]))
    assert torch.equal(*trained)


def tuples(count=6):
    """A stranger's plain (image, mask) batches."""
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


def test_figures_are_taken_at_each_photographs_own_size(voc_root, tmp_path):
    """Logits resized to the photograph, argmax, against the untouched mask: redone here by hand, image by image."""
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
        item = data.datasets["val"][number]
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


def test_an_images_prediction_does_not_depend_on_its_batch():
    task = small().eval()
    images = [torch.rand(3, *size) for size in ((16, 24), (24, 16), (16, 24))]
    batch = collate([{"image": image, "input_size": image.shape[-2:], "original_size": (30, 40)} for image in images])
    together = task.predict_step(batch, 0)
    for image, prediction in zip(images, together, strict=True):
        (alone,) = task.predict_step({"image": image[None], "original_size": [(30, 40)]}, 0)
        assert prediction.shape == (30, 40)
        assert prediction.dtype == torch.uint8
        assert torch.equal(prediction, alone)


def test_all_void_batches_train_with_loss_zero(tmp_path):
    void = DataLoader(TensorDataset(torch.rand(2, 3, 8, 8), torch.full((2, 8, 8), 255)), batch_size=2)
    task = small()
    run = trainer(tmp_path)
    run.fit(task, void, void)
    assert run.callback_metrics["train/loss"] == 0
    assert run.callback_metrics["val/loss"] == 0
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_nothing_left_to_train_is_told(tmp_path):
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


def test_pretrained_weights_are_needed_only_by_the_first_fit(tmp_path):
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
    anew = small(backbone=ResNet(18, weights=str(tmp_path / "weights.pth"), freeze=True))
    trainer(tmp_path, max_epochs=2).fit(anew, tuples(), ckpt_path=tmp_path / "c.ckpt")  # as the command line does
    assert torch.equal(anew.backbone.conv1.weight, source.conv1.weight)
    trainer(tmp_path).fit(SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt"), tuples())  # fine-tunes


class Counted(L.LightningDataModule):
    """A stranger's data that says how often each class occurs; class a never does."""

    class_counts = torch.tensor([900, 0, 100])

    def train_dataloader(self):
        return tuples()


@pytest.mark.parametrize("loss", [CrossEntropy("inverse_frequency"), FocalLoss(1.5, "inverse_frequency")])
def test_class_weights_are_counted_once_and_travel_with_the_checkpoint(loss, tmp_path, caplog):
    run = trainer(tmp_path)
    run.fit(small(loss=loss), datamodule=Counted())
    assert caplog.text.count("No pixel of the training split is a:") == 1
    run.save_checkpoint(tmp_path / "c.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    assert type(loaded.loss) is type(loss)
    assert loaded.loss.class_weights.tolist() == pytest.approx([0.1, 0.9, 0.9])
    trainer(tmp_path, max_epochs=2).fit(loaded, tuples(), ckpt_path=tmp_path / "c.ckpt")  # needs no counts again


def test_counted_weights_need_counts(tmp_path):
    with pytest.raises(VocsegError, match="class_counts"):
        trainer(tmp_path).fit(small(loss=CrossEntropy("inverse_frequency")), tuples())


def test_given_weights_must_fit_the_classes():
    with pytest.raises(VocsegError, match="2 numbers for 3 classes"):
        small(loss=CrossEntropy([0.5, 0.5]))


STRANGER = """
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
def stranger(tmp_path, monkeypatch):
    """A module of the user's own, importable from tmp_path."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import stranger

    yield stranger
    del sys.modules["stranger"]


def test_checkpoints_load_in_a_fresh_process_with_safe_loading(tmp_path, stranger):
    """A stranger's backbone, a partial optimizer, our decoder: nothing is passed again."""
    from functools import partial

    task = SegmentationTask(
        stranger.Bare(),
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


def test_what_could_not_be_recorded_is_passed_again(tmp_path, stranger):
    run = trainer(tmp_path)
    task = SegmentationTask(stranger.Plain(5), SkipDecoder, CLASSES)
    run.fit(task, tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(VocsegError, match=r"stranger\.Plain.*load_from_checkpoint\(path, backbone="):
        SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt", backbone=stranger.Plain(5))
    assert torch.equal(again.backbone.layer.weight, task.backbone.layer.weight)


def test_a_backbone_that_cannot_be_imported_names_its_module(tmp_path, stranger):
    run = trainer(tmp_path)
    run.fit(SegmentationTask(stranger.Bare(), SkipDecoder, CLASSES), tuples())
    (tmp_path / "elsewhere").mkdir()
    run.save_checkpoint(tmp_path / "elsewhere" / "c.ckpt")
    done = in_a_fresh_process(
        "from vocseg import SegmentationTask; SegmentationTask.load_from_checkpoint('c.ckpt')", tmp_path / "elsewhere"
    )
    assert done.returncode != 0
    assert "No module named 'stranger'" in done.stderr
    assert "PYTHONPATH" in done.stderr


def test_a_reloaded_task_records_the_same_and_saves_again(tmp_path):
    task = small(optimizer=torch.optim.SGD)
    run = trainer(tmp_path)
    run.fit(task, tuples())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(again.hparams) == dict(task.hparams)


def test_a_finished_decoder_and_a_strangers_loss_serve(tmp_path):
    backbone = StridedEncoder(widths=(4, 8))
    decoder = SkipDecoder(backbone.channels, backbone.strides, 3, width=8)
    task = SegmentationTask(backbone, decoder, CLASSES, loss=nn.CrossEntropyLoss(ignore_index=255))
    run = trainer(tmp_path)
    run.fit(task, tuples(), tuples())
    run.save_checkpoint(tmp_path / "c.ckpt")
    loss = nn.CrossEntropyLoss(ignore_index=255)
    again = SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt", loss=loss)
    assert again.decoder.reduce[0].out_channels == 8


def test_channels_last_changes_no_result():
    torch.manual_seed(0)
    first = small(channels_last=True).eval()
    second = small(channels_last=False).eval()
    second.load_state_dict(first.state_dict())
    image = torch.rand(2, 3, 30, 20)
    assert torch.allclose(first(image), second(image), atol=1e-5)


def test_a_large_photographs_labels_do_not_depend_on_how_many_classes_are_resized_at_once(monkeypatch):
    scores = torch.randn(21, 9, 7)
    whole = task_module.label_map(scores, (90, 130))
    assert torch.equal(whole, task_module.resize(scores[None], (90, 130))[0].argmax(0))
    for at_once in (1, 4):
        monkeypatch.setattr(task_module, "LOGITS_AT_ONCE", at_once * 90 * 130)
        assert torch.equal(task_module.label_map(scores, (90, 130)), whole)


def test_backbone_and_decoder_serve_alone_in_other_projects(tmp_path):
    """Plain modules with plain state dicts."""
    task = small().eval()
    torch.save(task.backbone.state_dict(), tmp_path / "backbone.pth")
    torch.save(task.decoder.state_dict(), tmp_path / "decoder.pth")
    backbone = StridedEncoder(widths=(4, 8)).eval()
    decoder = type(task.decoder)(backbone.channels, backbone.strides, len(CLASSES)).eval()
    backbone.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True))
    decoder.load_state_dict(torch.load(tmp_path / "decoder.pth", weights_only=True))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = task_module.resize(nn.Sequential(backbone, decoder)(image), image.shape[-2:])
        assert torch.allclose(logits, task(image), atol=1e-5)
