"""Batches drawn by a data module, without a trainer."""

import io
import pickle

import albumentations as A
import numpy as np
import pytest
from PIL import Image

from vocseg import FolderDataModule, SegmentationDataModule, SyntheticDataModule, VOCDataModule, VocsegError
from vocseg.data import synthetic
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.data.transforms import to_pixels


def voc(voc_root, **settings):
    return VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, **{"image_size": 40, **settings})


def as_float(image, **_):
    return image.astype(np.float32)


def names(figure):
    return [axes.get_title() for axes in figure.axes]


def entries(figure):
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def test_the_images_are_those_of_a_training_epoch(voc_root):
    figure = voc(voc_root, train_transforms="affine").show(count=4, seed=3)
    data = voc(voc_root, train_transforms="affine", num_workers=0, batch_size=4)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    batch = next(iter(loader))
    assert names(figure) == [data.datasets["train"].samples[index].image.stem for index in batch["index"]]
    present = {int(label) for mask in batch["mask"] for label in mask.unique()} - {0}
    assert entries(figure) == [name for label, name in enumerate([*SYNTHETIC_CLASSES]) if label in present] + ["void"]
    # background is not coloured: there the picture is the augmented photograph, enlarged nine times
    picture = figure.axes[0].get_images()[0].get_array()
    pixels, background = to_pixels(batch["image"][0]), (batch["mask"][0] == 0).numpy()
    inner = background.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(background, step, axis)
    inner[[0, -1]], inner[:, [0, -1]] = False, False
    ys, xs = np.nonzero(inner)
    assert np.abs(picture[ys * 9 + 4, xs * 9 + 4].astype(int) - pixels[ys, xs]).mean() < 3


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_and_many_images(split, voc_root):
    figure = voc(voc_root).show(split, count=100)
    assert len(figure.axes) == {"train": 10, "val": 5, "test": 4}[split]
    assert len(set(names(figure))) == len(figure.axes)
    assert all(name.startswith(split) for name in names(figure))


def test_another_seed_gives_other_images(voc_root):
    data = voc(voc_root)
    assert names(data.show(count=3)) == names(data.show(count=3)) != names(data.show(count=3, seed=1))


def test_floats_and_images_of_different_sizes(voc_root):
    transforms = [A.RandomScale((-0.5, 0.5), p=1), A.Lambda(image=as_float, p=1)]
    plain, floats = (voc(voc_root, train_transforms=each).show(count=3) for each in (transforms[:1], transforms))
    for one, other in zip(plain.axes, floats.axes, strict=True):
        assert one.get_title() == other.get_title()
        pictures = [axes.get_images()[0].get_array().astype(int) for axes in (one, other)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    for size in (1, (4, 600)):
        assert len(voc(voc_root, image_size=size).show(count=1).axes) == 1


def test_synthetic_and_folder_data_modules(monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "write_tree", lambda root, write=synthetic.write_tree: write(root, train=6, val=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(SyntheticDataModule(image_size=32).show(count=5).axes) == 5
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
            pixels = np.zeros((20, 30, 3) if kind == "images" else (20, 30), np.uint8)
            pixels[5:15, 5:25] = 1
            Image.fromarray(pixels).save(tmp_path / kind / split / "a_long_name_of_a_photograph_0001.png")
    figure = FolderDataModule(str(tmp_path), class_names=["background", "cat"], image_size=32).show()
    assert entries(figure) == ["cat"]
    assert names(figure) == ["a_long_name_…ograph_0001"]


def test_notebooks_and_files_get_a_picture(voc_root, tmp_path):
    figure = voc(voc_root).show(count=1, path=tmp_path / "batch.png")
    with Image.open(tmp_path / "batch.png") as written, Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert written.width > 300
        assert np.array_equal(np.array(written), np.array(shown))
    assert pickle.loads(pickle.dumps(figure)).axes


class Empty(SegmentationDataModule):
    """A data module of a user, without samples."""

    def samples(self, role):
        return []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "trian"}, "split must be one of train, val, test; got 'trian'. Did you mean 'train'?"),
        ({"count": 0}, "count must be at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"path": "/no/such/folder/a.png"}, "/no/such/folder/a.png cannot be written: No such file"),
    ],
)
def test_wrong_arguments_are_refused(settings, message, voc_root):
    with pytest.raises(VocsegError, match=message):
        voc(voc_root).show(**{"count": 1, **settings})


def test_a_split_without_images_is_refused(voc_root):
    with pytest.raises(VocsegError, match="The split train has no images"):
        Empty(["background", "cat"]).show()
    with pytest.raises(VocsegError, match="no split 'none'"):
        voc(voc_root, test_split="none").show("test")
