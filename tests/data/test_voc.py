import hashlib
import http.server
import subprocess
import sys
import tarfile
import threading

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import voc as torchvision_voc

from vocseg import VOCDataModule, VocsegError
from vocseg.data.synthetic import SYNTHETIC_CLASSES, SyntheticDataModule

LISTS, MASKS = "VOCdevkit/VOC2007/ImageSets/Segmentation", "VOCdevkit/VOC2007/SegmentationClass"


def build_data(voc_root, **settings):
    settings = {
        "root": voc_root,
        "class_names": list(SYNTHETIC_CLASSES),
        "batch_size": 4,
        "num_workers": 0,
        "image_size": 48,
        **settings,
    }
    data = VOCDataModule(**settings)
    data.setup("fit")
    return data


def read_epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def are_equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("image", "mask")
    )


def test_training_batches_have_the_documented_keys_shapes_and_types(voc_root):
    data = build_data(voc_root)
    batches = read_epoch(data.train_dataloader(), 0)
    assert len(batches) == 2  # 10 = 2 x 4 + 2; the incomplete batch is dropped
    for stored in batches:
        assert stored["image"].dtype == stored["mask"].dtype == torch.uint8
        batch = data.on_after_batch_transfer(stored, 0)
        assert set(batch) == {"image", "mask", "index"}
        assert batch["image"].shape == (4, 3, 48, 48)
        assert batch["image"].dtype == torch.float32
        assert batch["mask"].shape == (4, 48, 48)
        assert batch["mask"].dtype == torch.int64
        assert set(batch["mask"].unique().tolist()) <= {*range(len(SYNTHETIC_CLASSES)), 255}


def test_only_batch_is_kept_even_if_incomplete(voc_root):
    (batch,) = read_epoch(build_data(voc_root, batch_size=16).train_dataloader(), 0)
    assert len(batch["image"]) == 10


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("void_trains_as", ["ignored", "background"])
def test_class_counts_equal_the_pixels_of_the_masks(voc_root, in_memory, void_trains_as):
    data = build_data(voc_root, in_memory=in_memory, void_trains_as=void_trains_as)
    expected = np.zeros(256, dtype=int)
    for name in (voc_root / LISTS / "train.txt").read_text().split():
        with Image.open(voc_root / MASKS / f"{name}.png") as mask:
            for label, count in zip(*np.unique(np.array(mask), return_counts=True), strict=True):
                expected[label] += count
    assert expected[255] > 0
    if void_trains_as == "background":
        expected[0] += expected[255]
    assert data.class_counts.tolist() == expected[: len(SYNTHETIC_CLASSES)].tolist()
    assert data.class_counts is data.class_counts  # counted once


def test_void_trains_as_background_but_stays_void_in_evaluation(voc_root):
    data = build_data(voc_root, void_trains_as="background")
    assert all(255 not in batch["mask"] for batch in read_epoch(data.train_dataloader(), 0))
    assert any(255 in batch["mask"] for batch in data.val_dataloader())
    assert any((mask == 255).any() for batch in data.val_dataloader() for mask in batch["original_mask"])


@pytest.mark.parametrize("eval_transforms", ["resize", "keep_ratio"])
def test_evaluation_batches_contain_the_stored_masks(voc_root, eval_transforms):
    data = build_data(voc_root, eval_transforms=eval_transforms)
    batches = list(data.val_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(5))
    masks = [mask for batch in batches for mask in batch["original_mask"]]
    for sample, mask in zip(data.datasets["val"].samples, masks, strict=True):
        assert np.array_equal(mask.numpy(), np.array(Image.open(sample.mask)))
    sizes = torch.cat([batch["input_size"] for batch in batches]).tolist()
    if eval_transforms == "keep_ratio":
        for (height, width), mask in zip(sizes, masks, strict=True):
            assert max(height, width) == 48
            assert abs(height / width - mask.shape[0] / mask.shape[1]) < 0.05
    else:
        assert sizes == [[48, 48]] * 5


def test_padding_of_masks_is_void(voc_root):
    batch = next(iter(build_data(voc_root, eval_transforms="keep_ratio").val_dataloader()))
    for mask, (height, width) in zip(batch["mask"], batch["input_size"].tolist(), strict=True):
        assert (mask[height:] == 255).all()
        assert (mask[:, width:] == 255).all()
        assert (mask[:height, :width] != 255).any()


@pytest.mark.parametrize("in_memory", [False, True])
def test_epochs_differ_and_workers_do_not_change_the_draws(voc_root, in_memory):
    settings = {"train_transforms": "crop", "in_memory": in_memory}
    without_workers = build_data(voc_root, **settings).train_dataloader()
    with_workers = build_data(voc_root, num_workers=2, **settings).train_dataloader()
    first, second = read_epoch(without_workers, 0), read_epoch(without_workers, 1)
    assert not are_equal(first, second)
    assert are_equal(first, read_epoch(with_workers, 0))
    assert are_equal(second, read_epoch(with_workers, 1))  # the same worker processes, a later epoch
    assert are_equal(first, read_epoch(without_workers, 0))
    assert not are_equal(first, read_epoch(build_data(voc_root, seed=1, **settings).train_dataloader(), 0))


def test_python_exits_while_workers_wait(voc_root):
    """Workers ignore SIGTERM unless the main process sends it, which Python does on exit."""
    script = f"""
from vocseg import VOCDataModule
data = VOCDataModule(root={str(voc_root)!r}, class_names={list(SYNTHETIC_CLASSES)}, num_workers=2, batch_size=2)
data.setup("fit")
loader = data.train_dataloader()
for batch in loader:
    break
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


def test_trainer_sets_the_epoch_of_the_sampler(voc_root):
    """Lightning must call the sampler's set_epoch; without it all epochs would have the same draws."""
    sums = []

    class SumRecorder(L.LightningModule):
        def training_step(self, batch, batch_idx):
            sums.append(batch["image"].sum().item())

        def configure_optimizers(self):
            return None

    data = build_data(voc_root, train_transforms="crop", batch_size=10)
    trainer = L.Trainer(max_epochs=3, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(SumRecorder(), datamodule=data)
    assert len(set(sums)) == 3


def test_the_root_is_required():
    """A config that forgets it must not train on something else."""
    with pytest.raises(TypeError, match="root"):
        VOCDataModule()
    assert SyntheticDataModule().class_names == list(SYNTHETIC_CLASSES)


def test_hyperparameters_rebuild_the_data_module(voc_root, monkeypatch):
    monkeypatch.chdir(voc_root.parent)
    data = VOCDataModule(root=voc_root.name, image_size=(32, 48), train_transforms=["HorizontalFlip"])
    assert data.hparams["root"] == str(voc_root)
    again = VOCDataModule(**data.hparams)
    assert dict(again.hparams) == dict(data.hparams)
    assert again.image_size == (32, 48)


def test_missing_tree_error_lists_folders_and_remedies(tmp_path):
    with pytest.raises(VocsegError) as error:
        VOCDataModule(root=tmp_path).setup("fit")
    for part in (str(tmp_path / "VOCdevkit" / "VOC2007"), "--data.root", "--data.download", "quickstart"):
        assert part in str(error.value)


def test_incomplete_tree_error_names_the_missing_folder(tmp_path):
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(VocsegError, match="no folder SegmentationClass"):
        VOCDataModule(root=tmp_path).setup("fit")


def test_voc2012_test_split_is_refused(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(VocsegError, match="test_split val"):
        VOCDataModule(root=tmp_path, year="2012").setup("test")


def test_unexpected_labels_are_reported_before_training(voc_root):
    with pytest.raises(VocsegError, match="there are 3 classes"):
        build_data(voc_root, class_names=["a", "b", "c"])


@pytest.mark.parametrize("settings", [{"class_names": ["one"]}, {"batch_size": 0}, {"image_size": 0}])
def test_invalid_settings_are_refused(settings):
    with pytest.raises(VocsegError, match=r"at least|must name"):
        VOCDataModule("nowhere", **settings)


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def archive_server(voc_root, tmp_path):
    """Serves the small tree as the official archives on 127.0.0.1; yields (url, md5)."""
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "voc.tar", "w") as archive:
        archive.add(voc_root / "VOCdevkit", "VOCdevkit")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: SilentHandler(*args, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/voc.tar", hashlib.md5((served / "voc.tar").read_bytes()).hexdigest()
    server.shutdown()


def test_download_unpacks_the_archive_once(archive_server, tmp_path, monkeypatch):
    url, md5 = archive_server
    for key in ("2007", "2007-test"):
        entry = {**torchvision_voc.DATASET_YEAR_DICT[key], "url": url, "md5": md5}
        monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, key, entry)
    data = VOCDataModule(root=tmp_path / "new", download=True, class_names=list(SYNTHETIC_CLASSES), num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert len(data.datasets["train"]) == 10
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2007", {})  # a second download would fail
    data.prepare_data()


def test_damaged_download_raises(archive_server, tmp_path, monkeypatch):
    url, _ = archive_server
    for key in ("2007", "2007-test"):
        entry = {**torchvision_voc.DATASET_YEAR_DICT[key], "url": url, "md5": "0" * 32}
        monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, key, entry)
    with pytest.raises(VocsegError, match="failed"):
        VOCDataModule(root=tmp_path / "new", download=True).prepare_data()
