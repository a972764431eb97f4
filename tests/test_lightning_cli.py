"""fit, validate, test and predict: the real command line in-process, on real files."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vocseg import SegmentationTask, VocsegError, lightning_cli
from vocseg.cli import main
from vocseg.data.labels import VOC_PALETTE
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.initialization import checkpoint_of

QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, fit_flags, succeed_in):
    """A finished fit of two epochs: (folder it ran in, run folder, what it printed)."""
    folder = tmp_path_factory.mktemp("fit")
    printed = succeed_in(folder, [*fit_flags, "--model.optimizer.lr", "0.002"])
    return folder, folder / "lightning_logs" / "quickstart" / "version_0", printed


def scalars(run_folder):
    with (run_folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_fit_leaves_a_run_folder(run, voc_root):
    _, folder, printed = run
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "hparams.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(voc_root)
    assert config["name"] == "quickstart"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.002
    names = {"train/loss", "val/loss", "val/miou", "val/pixel_accuracy", "val/mean_accuracy", "val/iou/disc"}
    names |= {"lr-AdamW/backbone"}
    assert names <= set(scalars(folder)[0])
    events = EventAccumulator(str(folder)).Reload()
    assert names <= set(events.Tags()["scalars"])
    assert len(events.Scalars("val/miou")) == 2
    assert "mIoU" in printed
    assert "all background" in printed


def test_the_end_of_fit_prints_commands_that_work(run, monkeypatch, capsys):
    folder, _, printed = run
    monkeypatch.chdir(folder)
    commands = [line.split() for line in printed.splitlines() if line.startswith("  vocseg ")]
    assert [command[1] for command in commands] == ["test", "predict", "report"]
    for command in commands:
        assert main([*command[1:], *(QUIET if command[1] != "report" else [])]) == 0


def test_validate_reproduces_the_fit(run, vocseg, capsys):
    _, folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    logged = max(float(row["val/miou"]) for row in scalars(folder) if row["val/miou"])
    status, out, _ = vocseg("validate", "--ckpt_path", folder / "checkpoints" / "best.ckpt", *QUIET)
    assert status == 0
    shown = float(next(line for line in out.splitlines() if "mIoU" in line).split("|")[2])
    assert shown == pytest.approx(logged, abs=1e-4)
    assert best["epoch"] in (0, 1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_test_needs_only_the_checkpoint_and_adds_to_its_run(run, vocseg):
    _, folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "test" not in path.name}
    status, out, _ = vocseg("test", "--ckpt_path", folder / "checkpoints" / "best.ckpt", *QUIET)
    assert status == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    record = json.loads((folder / "test.json").read_text())
    assert record["images"] == 4
    assert record["data"]["test_split"] == "test"
    assert f"{record['miou']:.4f}" in out
    assert set(record["iou"]) == set(SYNTHETIC_CLASSES)
    assert set(record["all_background"]) == {"miou", "pixel_accuracy", "mean_accuracy"}
    assert 0 < record["mean_accuracy"] < 1


def test_a_run_stands_for_its_best_checkpoint(run, vocseg):
    _, folder, _ = run
    status, out, _ = vocseg("validate", "--ckpt_path", folder, *QUIET)
    assert status == 0
    assert vocseg("validate", "--ckpt_path", folder / "checkpoints" / "best.ckpt", *QUIET)[1] == out
    status, _, err = vocseg("validate", "--ckpt_path", "nosuch", *QUIET)
    assert (status, err.count("\n")) == (1, 1)
    assert "nosuch" in err


def test_flags_win_over_the_checkpoint(run, vocseg):
    _, folder, _ = run
    checkpoint = folder / "checkpoints" / "best.ckpt"
    status, out, _ = vocseg("test", "--ckpt_path", checkpoint, "--data.test_split", "val", *QUIET)
    assert status == 0
    assert "Test: 5 images" in out
    status, _, err = vocseg("test", "--ckpt_path", checkpoint, "--model.decoder.width", "8", *QUIET)
    assert status == 1  # the flag won, and then the weights no longer fit
    assert "does not fit" in err
    assert "decoder.reduce.0.weight: shape (64, 128, 1, 1), expected (8, 128, 1, 1)" in err


def test_predict_needs_no_tree_and_writes_palette_masks(run, vocseg, tmp_path):
    _, folder, _ = run
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"a.jpg": (33, 47), "b.png": (120, 60), "a.png": (64, 64), "grey.jpg": (50, 70)}
    for name, (height, width) in sizes.items():
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        (image.convert("L") if name == "grey.jpg" else image).save(images / name)
    status, out, err = vocseg(
        *("predict", "--ckpt_path", folder / "checkpoints" / "best.ckpt", "--data.root", "/gone", *QUIET),
        *("--data.predict_path", images, "--predictions.output_dir", tmp_path / "masks"),
    )
    assert (status, err) == (0, "")
    assert "Masks written to masks: 4" in out
    # a.jpg and a.png cannot both be a.png: the second in the list keeps its suffix
    assert {path.name for path in (tmp_path / "masks").glob("*.png")} == {"a.png", "a.png.png", "b.png", "grey.png"}
    for name, source in (("a.png", "a.jpg"), ("a.png.png", "a.png"), ("b.png", "b.png"), ("grey.png", "grey.jpg")):
        with Image.open(tmp_path / "masks" / name) as mask:
            assert (mask.mode, mask.size) == ("P", sizes[source][::-1])
            assert np.array(mask).max() < len(SYNTHETIC_CLASSES)
            assert mask.getpalette() == VOC_PALETTE.ravel().tolist()


def test_images_of_every_kind_are_predicted_and_broken_ones_reported(run, vocseg, tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    kinds = {"rgb.jpg": "RGB", "cmyk.jpg": "CMYK", "grey.png": "L", "rgba.png": "RGBA", "one.webp": "RGB"}
    for name, mode in kinds.items():
        image.convert(mode).save(folder / name)
    turned = Image.Exif()
    turned[274] = 6  # to be turned by 90 degrees when shown
    image.save(folder / "turned.jpg", exif=turned)
    image.resize((1, 1)).save(folder / "dot.png")
    (folder / "broken.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    flags = ["--predictions.output_dir", "out", "--predictions.probabilities", "true", *QUIET]
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    status, out, err = vocseg("predict", "--ckpt_path", checkpoint, "--data.predict_path", folder, *flags)
    assert status == 1
    assert "Masks written to out: 7" in out
    assert "Not predicted: 2" in err
    assert str(folder / "broken.jpg") in err
    assert str(folder / "empty.png") in err
    for name in ("rgb", "cmyk", "grey", "rgba", "one", "turned", "dot"):
        size = {"turned": (40, 60), "dot": (1, 1)}.get(name, (60, 40))
        with (
            Image.open(tmp_path / "out" / f"{name}.png") as mask,
            np.load(tmp_path / "out" / "probabilities" / f"{name}.npz") as probabilities,
        ):
            assert mask.size == size
            shares = probabilities["probabilities"].astype(float)
            assert list(probabilities["class_names"]) == list(SYNTHETIC_CLASSES)
            assert np.allclose(shares.sum(0), 1, atol=0.01)
            chosen = np.take_along_axis(shares, np.array(mask)[None].astype(int), axis=0)[0]
            assert (chosen >= shares.max(0) - 0.002).all()
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == size
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('<li class="card">') == 7
    assert page.count("cannot be read") + page.count("is not an image") == 2
    assert f"Checkpoint {'/<wbr>'.join(checkpoint.parts[-4:])}" in page
    sources = re.findall('src="(.*?)"', page)
    assert len(sources) == 14
    assert all((tmp_path / "out" / source).is_file() for source in sources)
    assert "http" not in page


def test_predictions_without_extras_are_only_masks(run, voc_root, vocseg, tmp_path):
    images = voc_root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    flags = [
        "--predictions.output_dir",
        "out",
        "--predictions.overlays",
        "false",
        "--predictions.contact_sheet",
        "false",
    ]
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    glob = images / "test_*.jpg"
    status, _, err = vocseg("predict", "--ckpt_path", checkpoint, "--data.predict_path", glob, *flags, *QUIET)
    assert (status, err) == (0, "")
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert written == [f"test_{n:04}.png" for n in range(4)]


def test_predicted_masks_score_what_test_says(run, voc_root, vocseg, tmp_path):
    """By NumPy alone, from the files on disk; and so do the masks that test itself writes."""
    folder, tree = run[1], voc_root / "VOCdevkit" / "VOC2007"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert vocseg("test", "--ckpt_path", checkpoint, *QUIET)[0] == 0
    images = tree / "JPEGImages" / "test_*.jpg"
    flags = ["--predictions.output_dir", "out", *QUIET]
    assert vocseg("predict", "--ckpt_path", checkpoint, "--data.predict_path", images, *flags)[0] == 0
    expected = json.loads((folder / "test.json").read_text())["miou"]
    for masks in (tmp_path / "out", folder / "test_masks"):
        counts = np.zeros((7, 7))
        for path in masks.glob("*.png"):
            truth = np.array(Image.open(tree / "SegmentationClass" / path.name))
            valid = truth != 255
            np.add.at(counts, (truth[valid], np.array(Image.open(path))[valid]), 1)
        union = counts.sum(0) + counts.sum(1) - counts.diagonal()
        assert np.nanmean(counts.diagonal()[union > 0] / union[union > 0]) == pytest.approx(expected, abs=1e-6)


def test_segment_does_what_predict_does(run, voc_root, vocseg, tmp_path):
    path = voc_root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "test_0001.jpg"
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    flags = ["--predictions.output_dir", "out", *QUIET]
    assert vocseg("predict", "--ckpt_path", checkpoint, "--data.predict_path", path, *flags)[0] == 0
    expected = np.array(Image.open(tmp_path / "out" / "test_0001.png"))
    task = SegmentationTask.load_from_checkpoint(checkpoint).train()
    with Image.open(path) as image:
        for given in (path, str(path), image, np.array(image)):
            labels = task.segment(given)
            assert (labels.dtype, labels.shape) == (np.uint8, expected.shape)
            assert np.array_equal(labels, expected)
        assert task.segment(np.array(image.convert("L"))).shape == expected.shape
    assert task.training  # the mode it had
    with pytest.raises(VocsegError, match=r"got uint8 \[3, 4, 5\]"):
        task.segment(np.zeros((3, 4, 5), dtype=np.uint8))
    with pytest.raises(VocsegError, match="does not exist"):
        task.segment("nowhere.jpg")


def test_a_missing_data_root_is_reported_with_its_option(run, vocseg, voc_root, tmp_path):
    _, folder, _ = run
    checkpoint = folder / "checkpoints" / "best.ckpt"
    status, _, err = vocseg("test", "--ckpt_path", checkpoint, "--data.root", tmp_path / "gone", *QUIET)
    assert status == 1
    assert "--data.root" in err
    assert str(tmp_path / "gone") in err
    moved = shutil.copytree(voc_root, tmp_path / "new")
    assert vocseg("test", "--ckpt_path", checkpoint, "--data.root", moved)[0] == 0


def test_a_checkpoint_goes_from_the_command_line_to_python_and_back(run, vocseg, tmp_path):
    import lightning as L

    from vocseg import VOCDataModule

    _, folder, _ = run
    task = SegmentationTask.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert task.class_names == list(SYNTHETIC_CLASSES)
    assert task.optimizer.keywords["lr"] == 0.002
    data = VOCDataModule.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=1, logger=False, accelerator="cpu")
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    status, out, _ = vocseg("test", "--ckpt_path", tmp_path / "again.ckpt", *QUIET)
    assert status == 0
    assert "mIoU" in out
    assert (tmp_path / "lightning_logs" / "test" / "version_0" / "test.json").is_file()


USER_MODULE = """
from torch import nn

class Net(nn.Module):
    channels, strides = [6], [2]

    def __init__(self, kernel_size=3):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, kernel_size, stride=2, padding=kernel_size // 2)

    def forward(self, image):
        return [self.layer(image)]
"""


def test_a_users_backbone_is_found_in_the_current_folder_and_its_checkpoint_describes_it(fit_flags, tmp_path):
    """In fresh processes, through the installed entry point."""
    (tmp_path / "user_net.py").write_text(USER_MODULE)
    (tmp_path / "mine.yaml").write_text(
        "model:\n  backbone:\n    class_path: user_net.Net\n    init_args: {kernel_size: 5}\n  decoder: SkipDecoder\n"
    )
    code = "import sys; sys.path.remove('') if '' in sys.path else None; from vocseg.cli import main; sys.exit(main())"
    vocseg = [sys.executable, "-c", code]
    flags = ["--config", "mine.yaml", *fit_flags[3:]]
    fit = subprocess.run([*vocseg, "fit", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert fit.returncode == 0, fit.stderr
    checkpoint = "lightning_logs/mine/version_0/checkpoints/best.ckpt"
    test = subprocess.run([*vocseg, "test", "--ckpt_path", checkpoint], cwd=tmp_path, capture_output=True, text=True)
    assert test.returncode == 0, test.stderr
    recorded = torch.load(tmp_path / checkpoint, weights_only=True)["hyper_parameters"]["backbone"]
    assert recorded == {"class_path": "user_net.Net", "init_args": {"kernel_size": 5}}
    (tmp_path / "user_net.py").unlink()
    gone = subprocess.run([*vocseg, "test", "--ckpt_path", checkpoint], cwd=tmp_path, capture_output=True, text=True)
    assert gone.returncode == 1
    assert "No module named 'user_net'" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_an_error_in_a_worker_process_is_reported_in_one_line(fit_flags, vocseg, tmp_path):
    shrinking = '[{"class_path": "RandomScale", "init_args": {"scale_limit": [-0.999, -0.999], "p": 1}}]'
    status, _, err = vocseg(*fit_flags, "--data.train_transforms", shrinking, "--data.num_workers", "2")
    assert status == 1
    assert err.splitlines()[-1].startswith("vocseg: The transforms cannot handle ")
    assert "Traceback" not in err


def test_fast_dev_run_of_every_command(fit_flags, run, voc_root, vocseg, tmp_path):
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    fast = ["--trainer.fast_dev_run", "1", *QUIET]
    image = next((voc_root / "VOCdevkit" / "VOC2007" / "JPEGImages").iterdir())
    assert vocseg(*fit_flags, *fast)[0] == 0
    assert vocseg("validate", "--ckpt_path", checkpoint, *fast)[0] == 0
    assert vocseg("test", "--ckpt_path", checkpoint, *fast)[0] == 0
    assert vocseg("predict", "--ckpt_path", checkpoint, "--data.predict_path", image, *fast)[0] == 0
    assert not (tmp_path / "lightning_logs").exists()


def test_mixed_precision_trains_and_scores(fit_flags, vocseg, tmp_path):
    status, out, _ = vocseg(*fit_flags, "--trainer.precision", "bf16-mixed")
    assert status == 0
    lines = scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")
    assert all(np.isfinite(float(line["train/loss"])) for line in lines)
    assert "mIoU" in out


def test_the_same_few_batches_can_be_overfitted(fit_flags, vocseg, tmp_path):
    status, _, err = vocseg(*fit_flags, "--trainer.overfit_batches", "2")
    assert status == 0, err
    assert scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")[-1]["step"] == "4"


def test_a_fit_without_validation_keeps_its_last_checkpoint(fit_flags, vocseg, tmp_path):
    status, out, _ = vocseg(*fit_flags, "--trainer.limit_val_batches", 0)
    assert status == 0
    assert "nothing was validated" in out
    checkpoints = tmp_path / "lightning_logs" / "quickstart" / "version_0" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert f"vocseg test --ckpt_path {checkpoints.relative_to(tmp_path) / 'last.ckpt'}" in out


def test_training_is_the_same_twice(fit_flags, vocseg, tmp_path):
    rows = []
    for name in ("a", "b"):
        assert vocseg(*fit_flags, "--name", name)[0] == 0
        rows.append(scalars(tmp_path / "lightning_logs" / name / "version_0"))
        assert all(float(row.pop("seconds")) > 0 for row in rows[-1])
    assert rows[0] == rows[1]


IMPROVEMENTS = {
    "cosine": ["--model.schedule.kind", "cosine"],
    "restarts": ["--model.schedule.kind", "cosine_restarts", "--model.schedule.cycle", "3"],
    "augmentation": ["--data.train_transforms", "paper"],
    "class weights": ["--model.loss", "CrossEntropy", "--model.loss.class_weights", "inverse_frequency"],
    "given weights": ["--model.loss", "CrossEntropy", "--model.loss.class_weights", "[1,1,1,1,1,2,2]"],
    "focal": ["--model.loss", "FocalLoss", "--model.loss.gamma", "1.5"],
    "all in a file": ["--config", "more.yaml"],
}


@pytest.mark.parametrize("improvement", IMPROVEMENTS)
def test_improvements_are_added_by_flags_or_a_second_config(improvement, fit_flags, vocseg, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "model:\n  schedule: {kind: cosine}\n"
        "  loss: {class_path: FocalLoss, init_args: {gamma: 1, class_weights: inverse_frequency}}\n"
        "data: {train_transforms: flip_both, void_trains_as: background}\n"
        "early_stopping: 3\n"
    )
    flags = IMPROVEMENTS[improvement]
    status, _, err = vocseg(*fit_flags, *flags, "--trainer.max_epochs", 1)
    assert (status, err) == (0, "")
    name = "quickstart-more" if improvement == "all in a file" else "quickstart"
    folder = tmp_path / "lightning_logs" / name / "version_0"
    kinds = {"cosine": "cosine", "restarts": "cosine_restarts", "all in a file": "cosine"}
    task = SegmentationTask.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert task.schedule.kind == kinds.get(improvement, "poly")
    if "weights" in improvement or improvement == "all in a file":
        assert len(set(task.loss.class_weights.tolist())) > 1
    if improvement in ("focal", "all in a file"):
        assert task.loss.gamma == (1.5 if improvement == "focal" else 1)


def test_early_stopping_stops(fit_flags, vocseg, tmp_path):
    flags = ["--early_stopping", 2, "--model.optimizer.lr", 0, "--model.backbone.freeze", "true"]
    flags += ["--model.decoder", "DeconvDecoder", "--trainer.max_epochs", 9]
    status, _, err = vocseg(*fit_flags, *flags)
    assert status == 0, err
    epochs = scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")
    assert 3 <= len(epochs) < 9


def test_a_fit_resumed_from_its_last_checkpoint_continues_in_its_folder(fit_flags, vocseg, tmp_path):
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    assert vocseg(*fit_flags, "--data.train_transforms", "crop")[0] == 0
    before, config = scalars(folder), (folder / "config.yaml").read_text()
    status, _, err = vocseg(*fit_flags, "--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 4)
    assert status == 0
    assert err.endswith(": trainer.max_epochs 2 -> 4, data.train_transforms crop -> flip\n")  # the config's
    after = scalars(folder)
    assert after[:2] == before
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"]
    assert (folder / "config.yaml").read_text() == config
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    miou = [float(row["val/miou"]) for row in after]
    assert best["epoch"] == miou.index(max(miou))


def test_the_last_checkpoint_option_gives_settings_and_weights(run, vocseg, tmp_path):
    """Of two --ckpt_path the last one counts, wherever it stands, also in a config."""
    best = run[1] / "checkpoints" / "best.ckpt"
    other = torch.load(best, weights_only=True)
    other["datamodule_hyper_parameters"]["test_split"] = "val"  # 5 images instead of 4
    torch.save(other, tmp_path / "other.ckpt")
    (tmp_path / "best.yaml").write_text(f"ckpt_path: {best}\n")
    (tmp_path / "other.yaml").write_text("ckpt_path: other.ckpt\n")
    for words, images in (
        (["--ckpt_path", best, "--ckpt_path", "other.ckpt"], 5),
        (["--ckpt_path=other.ckpt", f"--ckpt_path={best}"], 4),
        (["--config", "other.yaml"], 5),
        (["--config", "best.yaml", "--config", "other.yaml"], 5),
        (["--config", "other.yaml", "--ckpt_path", best], 4),
        (["--ckpt_path", best, "-c", "other.yaml"], 5),
    ):
        status, out, err = vocseg("test", *words, *QUIET)
        assert status == 0, err
        assert f"Test: {images} images" in out, words


def test_a_saved_config_starts_a_new_run(fit_flags, vocseg, tmp_path):
    """Also that of a resumed run, which started from a checkpoint."""
    runs = tmp_path / "lightning_logs" / "quickstart"
    assert vocseg(*fit_flags, "--trainer.max_epochs", 1)[0] == 0
    assert vocseg(*fit_flags, "--ckpt_path", "last", "--model.optimizer.lr", "0.001")[0] == 0
    assert "ckpt_path" not in yaml.safe_load((runs / "version_0" / "config_1.yaml").read_text())
    status, _, err = vocseg("fit", "--config", runs / "version_0" / "config_1.yaml", *QUIET)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    assert [line["epoch"] for line in scalars(runs / "version_1")] == ["0", "1"]
    again = yaml.safe_load((runs / "version_1" / "config.yaml").read_text())
    assert again["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001


def test_a_config_with_ckpt_path_last_resumes(fit_flags, vocseg, tmp_path):
    (tmp_path / "resume.yaml").write_text("ckpt_path: last\nname: quickstart\n")
    assert vocseg(*fit_flags, "--trainer.max_epochs", 1)[0] == 0
    status, _, err = vocseg(*fit_flags, "--config", "resume.yaml")
    assert status == 0
    assert "Resuming from lightning_logs/quickstart/version_0/checkpoints/last.ckpt" in err
    assert len(scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")) == 2


def test_auto_resumes_what_there_is_and_else_starts(fit_flags, vocseg, tmp_path):
    """One command for a job that a scheduler may start several times."""
    folder = tmp_path / "elsewhere" / "lightning_logs" / "quickstart"
    command = [*fit_flags, f"--trainer.default_root_dir={tmp_path / 'elsewhere'}", "--ckpt_path", "auto"]
    for epochs, resumes in ((1, False), (2, True), (2, True)):  # new, unfinished, finished
        status, _, err = vocseg(*command, "--trainer.max_epochs", epochs)
        assert status == 0
        assert ("Resuming from" in err) == resumes
        assert [path.name for path in folder.iterdir()] == ["version_0"]
        assert len(scalars(folder / "version_0")) == epochs


def test_options_are_not_abbreviated(run, vocseg):
    best = run[1] / "checkpoints" / "best.ckpt"
    status, _, err = vocseg("test", "--ckpt_path", best, "--trainer.limit_test_batch", 1)
    assert status == 1
    assert "There is no option 'trainer.limit_test_batch'. Did you mean 'trainer.limit_test_batches'?" in err
    assert vocseg("test", "--ckpt", best)[0] == 1


def mistakes(voc_root):
    fit = ["fit", "--config", "quickstart", "--data.root", voc_root]
    own = ["fit", "--config", "mine.yaml"]
    return {
        "command": (["fti"], "Did you mean 'fit'"),
        "config": (["fit", "--config", "mobilnet"], "Did you mean 'mobilenet'"),
        "option": ([*fit, "--data.bach_size", 3], "Did you mean 'data.batch_size'"),
        "option in a file": (own, r"'model.bakcbone' (in mine.yaml). Did you mean 'model.backbone'"),
        "class": ([*fit, "--model.decoder", "SkipDecodr"], "Did you mean 'SkipDecoder'"),
        "setting": ([*fit, "--model.decoder.widht", 3], "Did you mean 'width'"),
        "value": ([*fit, "--data.batch_size", "many"], "data.batch_size: expected int, got many"),
        "choice": ([*fit, "--data.year", "2008"], "2007"),
        "optimizer": ([*fit, "--model.optimizer", "Adamm"], "Did you mean 'Adam'"),
        "module": ([*fit, "--model.backbone", "no_module.Net"], "No module named 'no_module'"),
        "transform": ([*fit, "--data.train_transforms", "[HorizontalFlop]"], "Did you mean 'HorizontalFlip'"),
        "pipeline": ([*fit, "--data.train_transforms", "corp"], "Did you mean 'crop'"),
        "gamma": ([*fit, "--model.loss", "FocalLoss", "--model.loss.gamma", -1], "gamma of at least 0, got -1"),
        "length": ([*fit, "--model.schedule.length", 0], "length must be at least 1"),
        "cycle": ([*fit, "--model.schedule.kind", "cosine_restarts"], "cycle of at least 1"),
        "weights": (
            [*fit, "--model.loss", "CrossEntropy", "--model.loss.class_weights", "[1,2]"],
            "2 numbers for 7 classes",
        ),
        "early stopping": ([*fit, "--early_stopping", "-1"], "early_stopping"),
        "nothing": (["fit"], "--model.backbone"),
        "no checkpoint": (["test"], "--ckpt_path"),
        "missing checkpoint": (["test", "--ckpt_path", "none.ckpt"], "no checkpoint none.ckpt"),
        "foreign checkpoint": (["test", "--ckpt_path", "mine.yaml"], "no checkpoint of vocseg"),
        "foreign torch file": (["test", "--ckpt_path", "foreign.pt"], "no checkpoint of vocseg"),
        "missing tree": (["fit", "--config", "baseline", "--data.root", "nowhere"], "quickstart"),
        "missing weights": (
            ["fit", "--config", "mobilenet", "--data.root", voc_root, "--model.backbone.weights", "none.pth"],
            "none.pth",
        ),
        "trainer": ([*fit, "--trainer.accelerator", "gpuu"], "gpuu"),
        "optimizer's setting": (
            [*fit, "--model.lr", 1],
            "There is no option 'model.lr'. Did you mean 'model.optimizer.lr'?",
        ),
        "schedule lacks": (
            [*fit, "--model.schedule", "StepLR"],
            "a setting is missing: --model.schedule.step_size VALUE",
        ),
        "schedule's value": (
            [*fit, "--model.schedule", "StepLR", "--model.schedule.step_size", "x"],
            "model.schedule.step_size: expected int, got x\n",
        ),
        "schedule's name": (
            [*fit, "--model.schedule", "ReduceLROnPlateau"],
            "Give the full path of one of them: torch.optim.lr_scheduler.ReduceLROnPlateau",
        ),
        "schedule's setting": ([*fit, "--model.kind", "poly"], "Did you mean 'model.schedule.kind'"),
        "config without its option": (["fit", "quickstart"], "--config quickstart"),
        "abbreviation": ([*fit, "--trainer.max_epoch", 3], "Did you mean 'trainer.max_epochs'"),
        "data class": ([*fit, "--data", "VOCDataModul"], "Did you mean 'VOCDataModule'"),
        "data module": ([*fit, "--data", "no_module.Data"], "No module named 'no_module'"),
        "data setting of another class": (
            ["fit", "--config", "quickstart", "--data.download", "true"],
            "There is no option 'data.download'",
        ),
        "expanded glob": ([*fit, "--data.predict_path", "mine.yaml", "foreign.pt"], "needs quotes"),
    }


@pytest.mark.parametrize("case", mistakes(""))
def test_mistakes_get_a_few_lines(case, voc_root, vocseg, tmp_path):
    (tmp_path / "mine.yaml").write_text("model:\n  bakcbone:\n    class_path: ResNet\n")
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, tmp_path / "foreign.pt")
    args, message = mistakes(voc_root)[case]
    extra = ["--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]"] if str(voc_root) in map(str, args) else []
    status, _, err = vocseg(*args, *extra)
    assert status != 0
    assert message in err
    assert "Traceback" not in err
    assert (
        len([line for line in err.splitlines() if line.startswith(("vocseg:", " ", "There")) or "error" in line]) < 12
    )
    assert "usage:" not in err


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss", "val/mean_accuracy", "val/iou/disc"])
def test_the_best_checkpoint_and_early_stopping_follow_the_monitored_score(monitor, fit_flags, vocseg, tmp_path):
    """Losses must fall, everything else must grow."""
    flags = ["--checkpoint.monitor", monitor, "--early_stopping", 1, "--trainer.max_epochs", 4]
    status, out, err = vocseg(*fit_flags, *flags)
    assert status == 0, err
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    scores = [float(line[monitor]) for line in scalars(folder)]
    best = (min if "loss" in monitor else max)(scores)
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == scores.index(best)
    assert f"{monitor} {best:.4f}" in out
    if monitor.startswith("val/"):
        assert (
            f"best epoch by {monitor} ({scores.index(best) + 1})" in out
        )  # the printed table is of the kept checkpoint
    better = [b < a if "loss" in monitor else b > a for a, b in itertools.pairwise(scores)]
    assert len(scores) == 4 or not better[-1]  # it stops only where the score got worse
    assert yaml.safe_load((folder / "config.yaml").read_text())["checkpoint"]["mode"] == "auto"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint.monitor", "val_loss"], "nothing logs 'val_loss'. Did you mean 'val/loss'?"),
        (["--checkpoint.monitor", "val/mIoU"], "Did you mean 'val/miou'?"),
        (["--checkpoint.monitor", "val/iou/cat"], "val/iou/<class>"),
        (["--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max"], "would keep the worst epoch"),
        (["--checkpoint.mode", "min"], "would keep the worst epoch"),
        (["--checkpoint.save_top_k", "3"], "need names that differ, for example --checkpoint.filename 'best-{epoch}'"),
        (["--checkpoint.save_top_k", "-1"], "need names that differ"),
    ],
)
def test_a_monitor_that_cannot_work_is_refused_before_the_first_step(flags, message, fit_flags, vocseg, tmp_path):
    status, out, err = vocseg(*fit_flags, *flags)
    assert status == 1
    assert message in err
    assert "Epoch" not in out


OWN_DEFAULTS = """
from pathlib import Path

from vocseg import FolderDataModule, SegmentationTask


class MyFolder(FolderDataModule):
    def __init__(self, root: str, batch_size: int = 3, image_size: int | list[int] = 48, **settings):
        super().__init__(root, batch_size=batch_size, image_size=image_size, **settings)
        self.save_hyperparameters({"any": object()})
        self.hparams["root"] = Path(root)


class MyTask(SegmentationTask):
    def __init__(self, *args, channels_last: bool = False, **settings):
        super().__init__(*args, channels_last=channels_last, **settings)
"""


@pytest.mark.parametrize("as_config", [False, True])
def test_a_class_that_is_chosen_keeps_its_own_defaults(as_config, voc_root, vocseg, tmp_path, monkeypatch):
    (tmp_path / "own_defaults.py").write_text(OWN_DEFAULTS)
    monkeypatch.syspath_prepend(tmp_path)
    tree = str(voc_root / "VOCdevkit" / "VOC2007")
    folders = ["--data.image_folder", "JPEGImages", "--data.mask_folder", "SegmentationClass"]
    folders += ["--data.val_share", 0.2]
    names = f"[{', '.join(SYNTHETIC_CLASSES)}]"
    network = ["--model.backbone", "StridedEncoder", "--model.decoder", "SkipDecoder"]
    if as_config:
        chosen = {
            "model": {"class_path": "own_defaults.MyTask", "init_args": {"optimizer": {"class_path": "AdamW"}}},
            "data": {"class_path": "own_defaults.MyFolder", "init_args": {"root": tree}},
        }
        chosen["model"]["init_args"] |= {"backbone": "StridedEncoder", "decoder": "SkipDecoder"}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(chosen))
        words = ["--config", "own.yaml"]
    else:
        words = ["--data", "own_defaults.MyFolder", "--data.root", tree, "--model", "own_defaults.MyTask", *network]
        words += ["--model.optimizer", "AdamW"]
    more = ["--data.num_workers", 0, "--data.class_names", names, "--trainer.max_epochs", 1, "--name", "own"]
    status, _, err = vocseg("fit", *words, *folders, *more, *QUIET)
    assert status == 0, err
    config = yaml.safe_load((tmp_path / "lightning_logs" / "own" / "version_0" / "config.yaml").read_text())
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert (data["batch_size"], data["image_size"], model["channels_last"]) == (3, 48, False)
    assert model["optimizer"]["init_args"] | {"lr": 0.001, "weight_decay": 0.01} == model["optimizer"]["init_args"]
    # its hyperparameters include a path and an object, which safe loading does not know
    status, _, err = vocseg("test", "--ckpt_path", "own", *QUIET)
    assert status == 0, err


def test_a_broken_checkpoint_of_an_older_run_does_not_matter(fit_flags, vocseg, tmp_path):
    runs = tmp_path / "lightning_logs" / "quickstart"
    for epochs in (1, 1):
        assert vocseg(*fit_flags, "--trainer.max_epochs", epochs)[0] == 0
    (runs / "version_0" / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    newer = (runs / "version_1" / "checkpoints" / "last.ckpt").stat().st_mtime
    os.utime(runs / "version_0" / "checkpoints" / "last.ckpt", (newer - 9, newer - 9))
    status, _, err = vocseg(*fit_flags, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert status == 0, err
    assert len((runs / "version_1" / "metrics.csv").read_text().splitlines()) == 3


def test_an_optimizers_own_error_is_one_line(fit_flags, vocseg):
    status, _, err = vocseg(*fit_flags, "--model.optimizer.lr", "-1")
    assert status == 1
    assert "vocseg: The optimizer cannot be built: Invalid learning rate: -1" in err
    assert "Traceback" not in err


def test_the_iou_of_a_class_with_loss_in_its_name_is_maximised():
    assert lightning_cli._mode_of("val/iou/hair loss", "auto") == lightning_cli._mode_of("val/miou", "auto") == "max"
    assert lightning_cli._mode_of("val/loss", "auto") == lightning_cli._mode_of("train/aux_loss", "auto") == "min"


def test_a_runs_name_means_its_best_checkpoint_whatever_its_file_is_called(fit_flags, vocseg, tmp_path):
    kept = ["--checkpoint.save_top_k", 2, "--checkpoint.filename", "kept-{epoch}", "--model.optimizer.lr", 0.3]
    status, out, err = vocseg(*fit_flags, *kept, "--trainer.max_epochs", 5)
    assert status == 0, err
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    scores = [float(line["val/miou"]) for line in csv.DictReader((folder / "metrics.csv").open())]
    best = folder / "checkpoints" / f"kept-epoch={scores.index(max(scores))}.ckpt"
    assert scores.index(max(scores)) < 4, "the last epoch must not be the best"
    assert checkpoint_of(folder) == checkpoint_of("quickstart").absolute() == best
    assert sorted(path.name for path in folder.glob("checkpoints/*.ckpt"))[-1] == "last.ckpt"
    status, out, err = vocseg("validate", "--ckpt_path", "quickstart", *QUIET)
    assert re.search(rf"\| mIoU +\| +{max(scores):.4f}", out), out


CSV = "lightning.pytorch.loggers.CSVLogger"


def test_last_finds_the_runs_own_checkpoint_whatever_logger_or_folder(fit_flags, vocseg, tmp_path):
    logger = ["--trainer.logger", CSV, "--trainer.logger.save_dir", "csv", "--trainer.logger.name", "quickstart"]
    elsewhere = ["--checkpoint.dirpath", "ck"]
    one, two = ["--trainer.max_epochs", 1], ["--trainer.max_epochs", 2, "--ckpt_path", "last"]
    assert vocseg(*fit_flags, *one)[0] == 0  # a run of that name, which no other logger may continue
    for flags in (logger, elsewhere):
        status, _, err = vocseg(*fit_flags, *flags, *two)
        assert (status, "nothing to resume" in err) == (1, True)
        assert vocseg(*fit_flags, *flags, *one)[0] == 0
        status, _, err = vocseg(*fit_flags, *flags, *two)
        assert status == 0, err
        assert f"Resuming from {'csv' if flags is logger else 'ck'}" in err
    runs = tmp_path / "lightning_logs" / "quickstart"
    assert len(scalars(runs / "version_1")) == 2  # where its first epoch was logged
    assert len(scalars(runs / "version_0")) == 1


def test_last_refuses_a_checkpoint_of_another_run_in_the_same_folder(fit_flags, vocseg):
    flags = ["--checkpoint.dirpath", "ck", "--trainer.max_epochs"]
    assert vocseg(*fit_flags, *flags, 1, "--name", "first")[0] == 0
    status, _, err = vocseg(*fit_flags, *flags, 2, "--name", "second", "--ckpt_path", "last")
    assert status == 1
    assert "no run 'second' in ck has a checkpoint (ck/last.ckpt is of another run)" in err


def test_last_refuses_a_logger_whose_folder_it_cannot_know(fit_flags, vocseg):
    logger = '{"class_path": "lightning.pytorch.loggers.WandbLogger"}'
    status, _, err = vocseg(*fit_flags, "--trainer.logger", logger, "--ckpt_path", "last")
    assert status == 1
    assert "WandbLogger" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "mine"],
        ["--trainer.callbacks+=RichProgressBar"],
        ["--trainer.callbacks+=TQDMProgressBar"],
        ["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps", 5],
        ["--trainer.overfit_batches", "0.5"],
    ],
    ids=lambda flags: str(flags[0]).partition("=")[2] or flags[0],
)
def test_lightnings_own_features_work(flags, fit_flags, vocseg):
    index = fit_flags.index("--trainer.enable_progress_bar")
    status, out, err = vocseg(*fit_flags[:index], *fit_flags[index + 2 :], *flags)
    assert status == 0, err
    assert "Best        val/miou" in out


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.logger", "WandbLogger"],
        ["--trainer.logger", "lightning.pytorch.loggers.MLFlowLogger"],
        ["--trainer.logger", "CometLogger"],
    ],
)
def test_a_logger_whose_package_is_missing_is_reported(flags, fit_flags, vocseg):
    status, _, err = vocseg(*fit_flags, *flags)
    assert status == 1
    assert "install it" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 8


def test_the_help_lists_our_components_in_few_lines(capsys):
    for command in ("fit", "test"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert len(out.splitlines()) < 400
        assert all(name in out for name in ("MobileNetV2", "SkipDecoder", "FocalLoss", "VOCDataModule", "my_module."))
        assert all(f"--{name} " in out for name in ("data.batch_size", "model.backbone_lr", "trainer.max_epochs"))
        assert "torch.nn.modules" not in out


USER_DATA_AND_TASK = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask


class MyData(L.LightningDataModule):
    class_names = ["background", "thing"]

    def __init__(self, images: int = 8):
        super().__init__()
        self.save_hyperparameters()
        self.images = images

    def loader(self):
        masks = torch.randint(0, 2, (self.images, 16, 16), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(masks[:, None].repeat(1, 3, 1, 1).float(), masks), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = loader


class MyTask(SegmentationTask):
    def __init__(self, *args, scale: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale
"""


def test_a_users_data_module_and_task_by_class_name(vocseg, tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(USER_DATA_AND_TASK)
    (tmp_path / "own.yaml").write_text(
        "model:\n  class_path: my_module.MyTask\n  init_args:\n    backbone: StridedEncoder\n    decoder: SkipDecoder\n"
        "    scale: 2.5\ndata:\n  class_path: my_module.MyData\n  init_args: {images: 12}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = vocseg("fit", "--config", "own.yaml", "--trainer.max_epochs", 2, *QUIET)
    assert status == 0, err
    assert "Best        val/miou" in out
    checkpoint = "lightning_logs/own/version_0/checkpoints/best.ckpt"
    status, out, err = vocseg("test", "--ckpt_path", checkpoint, *QUIET)
    assert status == 0, err
    assert "Test: 12 images" in out
    import my_module

    assert my_module.MyTask.load_from_checkpoint(checkpoint).scale == 2.5


def test_a_root_alone_means_voc_also_with_the_quickstart(voc_root, fit_flags, vocseg, tmp_path):
    assert vocseg(*fit_flags, "--trainer.fast_dev_run", 1)[0] == 0
    names = f"[{','.join(SYNTHETIC_CLASSES)}]"
    status, _, err = vocseg(
        "fit", "--config", "quickstart", f"--data.root={voc_root}", "--data.class_names", names,
        "--trainer.fast_dev_run", 1, *QUIET,
    )  # fmt: skip
    assert status == 0, err


@pytest.mark.parametrize("words", [["--model.backbone.weights", "null"], ["--model.backbone.weights=~"]])
def test_null_reaches_the_settings_of_a_component(words, vocseg, voc_root, tmp_path):
    """jsonargparse alone would look for weights called None."""
    status, _, err = vocseg(
        *("fit", "--config", "mobilenet", "--data.root", voc_root, *words, "--data.image_size", 32),
        *("--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]", "--trainer.fast_dev_run", 1, *QUIET),
    )
    assert status == 0, err


class FocalLoss(torch.nn.Module):
    """A loss of another library, as far as its name matters."""


class UPerNet(torch.nn.Module):
    """A decoder of another library."""


class MobileNetV2(torch.nn.Module):
    """A backbone of another library."""


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.loss", "FocalLoss", "--model.loss.gamma", "1"],
        ["--model.loss", "SumOfLosses", "--model.loss.losses", "[FocalLoss,{class_path: Dice}]"],
        ["--model.decoder", "UPerNet", "--model.decoder.width", "16"],
        ["--model.backbone", "MobileNetV2", "--model.auxiliary", "UPerNet"],
    ],
)
def test_short_names_are_those_of_vocseg_whatever_else_is_imported(flags, fit_flags, vocseg):
    status, _, err = vocseg(*fit_flags, *flags, "--trainer.fast_dev_run", "true")
    assert status == 0, err


def test_a_loss_that_takes_void_for_a_class_is_refused(fit_flags, vocseg):
    status, _, err = vocseg(*fit_flags, "--model.loss", "torch.nn.CrossEntropyLoss")
    assert status == 1
    assert "has the ignore_index -100, but void pixels have the label 255: give it ignore_index=255" in err
    total = ["--model.loss", "SumOfLosses", "--model.loss.losses", "[Dice, torch.nn.CrossEntropyLoss]"]
    assert "CrossEntropyLoss has the ignore_index -100" in vocseg(*fit_flags, *total)[2]
    status, _, err = vocseg(
        *(*fit_flags, "--model.loss", "torch.nn.CrossEntropyLoss", "--model.loss.ignore_index", "255"),
        *("--trainer.fast_dev_run", "true"),
    )
    assert status == 0, err
