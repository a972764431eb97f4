"""How samplers divide the samples among processes. The contents of batches are tested in test_voc.py."""

import pytest
import torch
from torch.utils.data import DataLoader

from vocseg import VOCDataModule, VocsegError
from vocseg.data.datasets import EpochSampler, ResumableLoader, collate
from vocseg.data.synthetic import SYNTHETIC_CLASSES

SAMPLES_AND_PROCESSES = [(12, 2), (13, 2), (3, 2), (1, 2), (5, 4), (2, 4)]


def indices_by_rank(samples, world_size, shuffle, epoch=3):
    samplers = [EpochSampler(range(samples), 7, shuffle, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    keys = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(own) for own in keys]
    assert {key[0] for own in keys for key in own} == {epoch}
    return [[index for _, index in own] for own in keys]


@pytest.mark.parametrize(("samples", "world_size"), SAMPLES_AND_PROCESSES)
def test_evaluation_covers_every_sample_once_and_ranks_have_equal_lengths(samples, world_size):
    by_rank = indices_by_rank(samples, world_size, shuffle=False)
    assert len({len(own) for own in by_rank}) == 1
    assert sorted(index for own in by_rank for index in own if index is not None) == list(range(samples))


@pytest.mark.parametrize(("samples", "world_size"), SAMPLES_AND_PROCESSES)
def test_training_has_no_padding_and_ranks_have_equal_lengths(samples, world_size):
    by_rank = indices_by_rank(samples, world_size, shuffle=True)
    indices = [index for own in by_rank for index in own]
    assert {len(own) for own in by_rank} == {max(samples // world_size, 1)}
    assert set(indices) <= set(range(samples))
    assert len(set(indices)) == min(len(indices), samples)  # repeated only if there are fewer samples than processes


def test_batches_of_two_processes_together_are_those_of_one():
    (single,), both = indices_by_rank(12, 1, shuffle=True), indices_by_rank(12, 2, shuffle=True)
    assert [index for pair in zip(*both, strict=True) for index in pair] == single
    assert sorted(single) == list(range(12))
    assert single != indices_by_rank(12, 1, shuffle=True, epoch=4)[0]


def passes(loader, number=3):
    """What a loader gives in each pass: the order of the images, and a checksum of each image."""
    return [
        [(batch["index"].tolist(), round(float(batch["image"].sum()), 3)) for batch in loader] for _ in range(number)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["ours", "of the dataset, in order", "of the dataset, shuffled"])
def test_a_plain_loop_draws_anew_in_every_pass_and_the_same_after_the_same_seed(loader, workers, voc_root):
    def build():
        torch.manual_seed(0)
        data = VOCDataModule(
            voc_root, class_names=SYNTHETIC_CLASSES, image_size=32, batch_size=4, num_workers=workers,
            train_transforms="crop",
        )  # fmt: skip
        data.setup("fit")
        if loader == "ours":
            return data.train_dataloader()
        return DataLoader(
            data.datasets["train"], 4, shuffle=loader.endswith("shuffled"), num_workers=workers, collate_fn=collate
        )

    first, again = passes(build()), passes(build())
    assert first == again
    sums = [[total for _, total in each] for each in first]
    orders = [[indices for indices, _ in each] for each in first]
    assert len({tuple(each) for each in sums}) == 3
    assert (orders[0] == orders[1]) == loader.endswith("in order")
    assert all(sorted(index for batch in each for index in batch)[:8] for each in orders)


def test_the_same_epoch_gives_the_same_pass():
    sampler = EpochSampler(range(10), 0, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert list(EpochSampler(range(10), 0, shuffle=True)) == orders[0]  # the first pass is epoch 0


def test_an_epoch_is_not_completed_with_batches_of_another_size():
    indices = {(0, index): index for index in range(12)}  # as a dataset: its items by their keys

    def loader(batch_size, processes=1):
        sampler = EpochSampler(indices, 0, shuffle=True, world_size=processes)
        return ResumableLoader(indices, batch_size, sampler=sampler)

    begun = loader(4)
    batches = iter(begun)
    next(batches)
    inside = begun.state_dict()
    with pytest.raises(VocsegError, match="batches of 4 images in 1 processes; now they have 2 images in 1 processes"):
        loader(2).load_state_dict(inside)
    with pytest.raises(VocsegError, match="now they have 4 images in 2 processes"):
        loader(4, processes=2).load_state_dict(inside)
    loader(4).load_state_dict(inside)
    loader(2).load_state_dict({"epoch": 0, "batches": 1})  # of an older version, which did not save it
    list(batches)
    loader(2).load_state_dict(begun.state_dict())  # the epoch is complete
