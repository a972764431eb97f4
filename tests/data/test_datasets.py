"""Which process gets which images; what batches hold is in test_voc.py."""

import pytest

from vocseg.data.datasets import EpochSampler

SIZES = [(12, 2), (13, 2), (3, 2), (1, 2), (5, 4), (2, 4)]


def shares(images, world, shuffle, epoch=3):
    samplers = [EpochSampler(range(images), 7, shuffle, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    taken = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in taken]
    assert {key[0] for share in taken for key in share} == {epoch}
    return [[place for _, place in share] for share in taken]


@pytest.mark.parametrize(("images", "world"), SIZES)
def test_evaluation_shares_hold_every_image_once_and_are_equally_long(images, world):
    taken = shares(images, world, shuffle=False)
    assert len({len(share) for share in taken}) == 1
    assert sorted(place for share in taken for place in share if place is not None) == list(range(images))


@pytest.mark.parametrize(("images", "world"), SIZES)
def test_training_shares_are_images_and_equally_long(images, world):
    taken = shares(images, world, shuffle=True)
    places = [place for share in taken for place in share]
    assert {len(share) for share in taken} == {max(images // world, 1)}
    assert set(places) <= set(range(images))
    assert len(set(places)) == min(len(places), images)  # twice only where there are fewer than processes


def test_the_processes_batches_make_up_those_of_one():
    (alone,), both = shares(12, 1, shuffle=True), shares(12, 2, shuffle=True)
    assert [place for pair in zip(*both, strict=True) for place in pair] == alone
    assert sorted(alone) == list(range(12))
    assert alone != shares(12, 1, shuffle=True, epoch=4)[0]
