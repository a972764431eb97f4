"""Checkpoints: complete after any error, safe to read from an untrusted source, found again."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from vocseg import SegmentationTask, StridedEncoder, VocsegError
from vocseg.checkpoints import AtomicCheckpointIO, last_checkpoint
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.decoders import DeconvDecoder

PATTERN = "net/*/checkpoints/last.ckpt"


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    (tmp_path / "checkpoints" / "last.ckpt.part").symlink_to("/dev/full")  # writing there fails as on a full disk
    with pytest.raises(VocsegError, match=r"No space left on device; the checkpoint before it is whole"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(1000)}, path)
    assert torch.load(path, weights_only=True)["step"] == 1
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_fit_reports_a_full_disk(fit_flags, vocseg, tmp_path):
    checkpoints = tmp_path / "lightning_logs" / "quickstart" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt.part").symlink_to("/dev/full")
    # a new run would take the next free version
    settings = {"save_dir": "lightning_logs", "name": "quickstart", "version": "version_0"}
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": settings}
    status, _, err = vocseg(*fit_flags, "--trainer.logger", json.dumps(logger))
    assert status == 1
    assert "best.ckpt could not be written: No space left on device" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("inside", [True, False], ids=["while it is written", "between"])
def test_a_killed_run_can_be_resumed(inside, fit_flags, vocseg, tmp_path):
    """The network is so large that its checkpoint takes a while to write."""
    words = [*fit_flags, "--trainer.max_epochs", "50", "--model.backbone.widths", "[32,64,128,256,512]"]
    checkpoints = tmp_path / "lightning_logs" / "quickstart" / "version_0" / "checkpoints"
    with subprocess.Popen([sys.executable, "-m", "vocseg", *words], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            seen = checkpoints / "last.ckpt"
            if seen.exists() and (not inside or (checkpoints / "last.ckpt.part").exists()):
                break
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
    left = {file.name for file in checkpoints.iterdir()}
    assert "last.ckpt" in left
    assert not inside or "last.ckpt.part" in left
    before = torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"]
    status, _, err = vocseg(*words, "--ckpt_path", "last", "--trainer.max_epochs", str(before + 2))
    assert status == 0, err
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == before + 1


def create_run(logs, version, name="net", **checkpoint):
    path = logs / name / f"version_{version}" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": 0, **checkpoint}, path)
    os.utime(path, (version, version))
    return path


def test_last_is_the_newest_unfinished_run(tmp_path):
    with pytest.raises(VocsegError, match="nothing to resume: no run 'net'"):
        last_checkpoint(tmp_path, PATTERN, "net", 10)
    older = create_run(tmp_path, 1, vocseg={"finished_epochs": 3}, global_step=30)
    newer = create_run(tmp_path, 2, vocseg={"finished_epochs": 8, "stopped_early": False}, global_step=80)
    create_run(tmp_path, 3, name="other", vocseg={"finished_epochs": 1})
    (tmp_path / "net" / "version_4" / "checkpoints").mkdir(parents=True)  # killed before its first checkpoint
    assert last_checkpoint(tmp_path, PATTERN, "net", 10) == newer
    for unlimited in (-1, None):
        assert last_checkpoint(tmp_path, PATTERN, "net", unlimited) == newer
    assert last_checkpoint(tmp_path, PATTERN, "net", 8) == older
    assert last_checkpoint(tmp_path, PATTERN, "net", None, max_steps=80) == older
    with pytest.raises(VocsegError, match=r"Every run 'net' .*\(2 of them\).*version_2"):
        last_checkpoint(tmp_path, PATTERN, "net", 3)
    create_run(tmp_path, 5, vocseg={"finished_epochs": 5, "stopped_early": True})
    assert last_checkpoint(tmp_path, PATTERN, "net", 10) == newer


def test_a_run_interrupted_in_its_last_epoch_is_unfinished(tmp_path):
    """Lightning's own ``epoch`` is the same at the end of the epoch."""
    path = create_run(tmp_path, 1, epoch=9, vocseg={"finished_epochs": 9})
    assert last_checkpoint(tmp_path, PATTERN, "net", 10) == path


def test_a_checkpoint_of_version_0_1_0_counts_its_epochs(tmp_path):
    path = create_run(tmp_path, 1, epoch=7)
    assert last_checkpoint(tmp_path, PATTERN, "net", 9) == path
    with pytest.raises(VocsegError, match="is finished"):
        last_checkpoint(tmp_path, PATTERN, "net", 8)


def test_auto_is_the_newest_run_or_a_new_one(tmp_path):
    assert last_checkpoint(tmp_path, PATTERN, "net", 10, finished_too=True) is None
    create_run(tmp_path, 1, vocseg={"finished_epochs": 3})
    finished = create_run(tmp_path, 2, vocseg={"finished_epochs": 10})
    assert last_checkpoint(tmp_path, PATTERN, "net", 10, finished_too=True) == finished


def test_a_fit_with_auto_starts_resumes_and_repeats_one_run(fit_flags, vocseg, tmp_path):
    words = [*fit_flags, "--ckpt_path", "auto", "--trainer.max_epochs"]
    checkpoint = tmp_path / "lightning_logs" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"

    def finished_epochs():
        return torch.load(checkpoint, weights_only=True)["vocseg"]["finished_epochs"]

    status, _, err = vocseg(*words, "1")
    assert (status, "Resuming" in err, finished_epochs()) == (0, False, 1)
    status, _, err = vocseg(*words, "2")
    assert (status, "Resuming from lightning_logs/quickstart/version_0" in err, finished_epochs()) == (0, True, 2)
    status, _, err = vocseg(*words, "2")  # nothing is left to train
    assert (status, "Resuming from lightning_logs/quickstart/version_0" in err, finished_epochs()) == (0, True, 2)
    assert os.listdir(tmp_path / "lightning_logs" / "quickstart") == ["version_0"]
    status, _, err = vocseg(*fit_flags, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert (status, "Every run 'quickstart'" in err) == (1, True)


class Hostile:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def checkpoint():
    """A valid checkpoint, as Python writes it."""
    task = SegmentationTask(StridedEncoder(widths=[4, 8]), DeconvDecoder, SYNTHETIC_CLASSES)
    data = {"root": "synthetic", "class_names": list(SYNTHETIC_CLASSES), "seed": 0}
    return {
        "state_dict": task.state_dict(),
        SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY: dict(task.hparams),
        "datamodule_hyper_parameters": data,
        "pytorch-lightning_version": "2.6.0",
        "global_step": 0,
    }


def test_code_in_a_checkpoint_is_never_run(checkpoint, vocseg, tmp_path):
    checkpoint["callbacks"] = Hostile(tmp_path / "harm")
    torch.save(checkpoint, tmp_path / "torch.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Hostile(tmp_path / "harm")))
    for name in ("torch.ckpt", "plain.ckpt"):
        for command in (["test"], ["predict", "--data.predict_path", "."], ["fit", "--config", "quickstart"]):
            status, _, err = vocseg(*command, "--ckpt_path", tmp_path / name)
            assert status == 1
            assert "more than it may load safely" in err
        with pytest.raises(Exception, match=r"(?i)weights_only|unsafe|load"):
            SegmentationTask.load_from_checkpoint(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_every_command_reads_checkpoints_without_unpickling(fit_flags, vocseg, voc_root, monkeypatch):
    read, safe = torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: (safe.append(kwargs.get("weights_only")), read(*args, **kwargs))[1]
    )
    assert vocseg(*fit_flags, "--trainer.max_epochs", "1")[0] == 0
    run = "lightning_logs/quickstart/version_0"
    assert vocseg(*fit_flags, "--ckpt_path", "last")[0] == 0
    image = voc_root / "VOCdevkit/VOC2007/JPEGImages/test_0000.jpg"
    for command in (["validate"], ["test"], ["predict", "--data.predict_path", image]):
        assert vocseg(*command, "--ckpt_path", f"{run}/checkpoints/best.ckpt")[0] == 0
    assert len(safe) >= 8
    assert set(safe) == {True}


HARM = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}}


@pytest.mark.parametrize("role", ["backbone", "decoder", "loss", "optimizer", "schedule"])
@pytest.mark.parametrize("harm", [HARM, "os.abort"], ids=["class", "function"])
def test_only_classes_of_components_are_instantiated(role, harm, checkpoint, vocseg, tmp_path):
    checkpoint[SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY][role] = harm
    torch.save(checkpoint, tmp_path / "x.ckpt")
    status, _, err = vocseg("test", "--ckpt_path", "x.ckpt")
    assert status == 1
    assert "not built" in err
    assert not (tmp_path / "harm").exists()


def test_no_class_is_instantiated_for_a_setting_without_a_type(checkpoint, vocseg, tmp_path, monkeypatch):
    (tmp_path / "untyped_net.py").write_text(
        "from vocseg import StridedEncoder\n\n\nclass Net(StridedEncoder):\n"
        "    def __init__(self, anything=None):\n        super().__init__(widths=[4, 8])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    described = {"class_path": "untyped_net.Net", "init_args": {"anything": HARM}}
    checkpoint[SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY]["backbone"] = described
    torch.save(checkpoint, tmp_path / "x.ckpt")
    status, _, err = vocseg("test", "--ckpt_path", "x.ckpt")
    assert status == 1
    assert "not built" in err
    with pytest.raises(VocsegError, match="not built"):
        SegmentationTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("transforms", [[HARM], [{"class_path": "Compose", "init_args": {"transforms": [HARM]}}]])
def test_only_transforms_are_instantiated(transforms, checkpoint, vocseg, tmp_path):
    checkpoint["datamodule_hyper_parameters"]["eval_transforms"] = transforms
    torch.save(checkpoint, tmp_path / "x.ckpt")
    status, _, err = vocseg("test", "--ckpt_path", "x.ckpt")
    assert status == 1
    assert "no class that can serve as eval_transforms" in err
    assert not (tmp_path / "harm").exists()
