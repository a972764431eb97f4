"""Copy-paste: which pixels and labels are pasted, the void band, and draws that depend on (seed, epoch, index) only."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vocseg import SyntheticDataModule, VOCDataModule, VocsegError
from vocseg.data.copy_paste import paste_objects
from vocseg.data.synthetic import SYNTHETIC_CLASSES


def make_item(number, boxes, size=(40, 50)):
    """An item whose image is ``number`` everywhere, with one rectangle (top, bottom, left, right) per label."""
    mask = torch.zeros(size, dtype=torch.int64)
    for label, (top, bottom, left, right) in boxes.items():
        mask[top:bottom, left:right] = label
    return {"image": torch.full((3, *size), float(number)), "mask": mask}


def test_half_of_the_object_classes_is_pasted_with_a_void_band():
    target = make_item(1, {7: (0, 40, 0, 25)})
    source = make_item(2, {1: (2, 10, 2, 10), 2: (20, 30, 5, 15), 3: (10, 20, 30, 40), 255: (35, 40, 0, 50)})
    choices = set()
    for seed in range(20):
        result = paste_objects(target, source, np.random.default_rng(seed))
        pasted = (result["mask"] > 0) & (result["mask"] < 4)
        chosen = tuple(result["mask"][pasted].unique().tolist())
        choices.add(chosen)
        band = F.max_pool2d(pasted[None, None].float(), 7, 1, 3)[0, 0] > 0
        assert pasted.equal(torch.isin(source["mask"], torch.tensor(chosen)))  # whole objects
        assert result["mask"][pasted].equal(source["mask"][pasted])
        assert (result["mask"][band & ~pasted] == 255).all()
        assert result["mask"][~band].equal(target["mask"][~band])
        assert result["image"].equal(torch.where(band, 2.0, 1.0).expand(3, -1, -1))
    assert choices == {(1, 2), (1, 3), (2, 3)}  # 2 of 3
    assert target["mask"].unique().tolist() == [0, 7]  # the arguments are not changed


def test_only_class_is_pasted_and_an_image_without_objects_changes_nothing():
    target, rng = make_item(1, {7: (0, 40, 0, 25)}), np.random.default_rng(0)
    assert 5 in paste_objects(target, make_item(2, {5: (0, 9, 0, 9)}), rng)["mask"]
    unchanged = paste_objects(target, make_item(2, {255: (0, 9, 0, 9)}), rng)
    assert all(unchanged[key].equal(target[key]) for key in target)


def build(root, copy_paste, **settings):
    settings = {"image_size": 48, "num_workers": 0, "train_transforms": "jitter", "batch_size": 5, **settings}
    data = VOCDataModule(str(root), class_names=SYNTHETIC_CLASSES, copy_paste=copy_paste, **settings)
    data.setup("fit")
    return data


def read(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    items = {int(index): (image, mask) for b in batches for index, image, mask in zip(*map(b.get, KEYS), strict=True)}
    return [items[index] for index in sorted(items)]


KEYS = ("index", "image", "mask")


def equal(first, second):
    return [a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(first, second, strict=True)]


def test_draws_depend_on_seed_epoch_and_index_only(voc_root):
    data, with_workers = build(voc_root, 1.0), build(voc_root, 1.0, num_workers=2, in_memory=True)
    first, second = read(data, 3), read(data, 4)
    assert all(equal(first, read(build(voc_root, 1.0), 3)))  # nothing before matters, as after resuming
    assert all(equal(first, read(with_workers, 3)))
    assert all(equal(second, read(with_workers, 4)))
    assert not any(equal(first, second))
    assert not any(equal(first, read(build(voc_root, 1.0, seed=1), 3)))


def test_probability_says_how_many_items_get_objects_and_others_stay_as_they_are(voc_root):
    plain = [read(build(voc_root, 0.0), epoch) for epoch in range(4)]
    without = VOCDataModule(str(voc_root), class_names=SYNTHETIC_CLASSES, image_size=48, train_transforms="jitter")
    without.setup("fit")
    assert all(torch.equal(without.datasets["train"][(2, i)]["image"], plain[2][i][0]) for i in range(10))
    shares = {}
    for probability in (0.5, 1.0):
        changed = [
            same for epoch in range(4) for same in equal(plain[epoch], read(build(voc_root, probability), epoch))
        ]
        shares[probability] = 1 - sum(changed) / len(changed)
    assert 0.2 <= shares[0.5] <= 0.7
    assert shares[1.0] >= 0.8  # a crop without objects pastes nothing


def test_pasted_sample_has_draws_of_its_own(voc_root):
    """What is pasted is not the same as the sample itself in that epoch, and comes from the sample's own pixels."""
    dataset = build(voc_root, 1.0, train_transforms="flip").datasets["train"]
    pipeline, own, other = dataset.pipeline, 0, 0
    for index in range(10):
        item = dataset[(0, index)]
        base = pipeline.transform(*dataset.stored(index), epoch=0, index=index)
        changed = (item["image"] != base["image"]).any(0)
        sources = [(j, flipped) for j in range(10) for flipped in (False, True) if j != index]
        for j, flipped in sources:
            image = pipeline.transform(*dataset.stored(j), epoch=0, index=j)["image"]
            if torch.equal((image.flip(-1) if flipped else image)[:, changed], item["image"][:, changed]):
                own, other = own + (not flipped), other + flipped
    assert own + other == 10
    assert min(own, other) >= 2


def test_band_stays_void_if_void_trains_as_background_and_evaluation_pastes_nothing(voc_root):
    data = build(voc_root, 1.0, void_trains_as="background", train_transforms="flip")
    assert all(255 in mask for _, mask in read(data, 0))
    assert data.datasets["val"].copy_paste == 0


def test_setting_is_saved_and_single_image_stays_as_it_is(voc_root):
    data = build(voc_root, 0.25, train_images=1)
    assert data.hparams["copy_paste"] == 0.25
    assert equal(read(data, 0), read(build(voc_root, 0.0, train_images=1), 0)) == [True]
    assert SyntheticDataModule(copy_paste=0.5).hparams["copy_paste"] == 0.5


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_values_that_are_no_probability_are_refused(voc_root, probability):
    with pytest.raises(VocsegError, match="copy_paste is a probability and must be in 0 to 1"):
        VOCDataModule(str(voc_root), copy_paste=probability)


def test_transforms_that_give_different_sizes_are_refused(voc_root):
    data = build(voc_root, 1.0, train_transforms=["Transpose", {"class_path": "RandomScale", "init_args": {"p": 1}}])
    with pytest.raises(VocsegError, match=r"images of one size.*train_transforms jitter"):
        [data.datasets["train"][(0, index)] for index in range(10)]
