"""How samplers divide the samples among processes. The contents of batches are tested in test_voc.py."""

import pytest

from vocseg.data.datasets import EpochSampler

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
