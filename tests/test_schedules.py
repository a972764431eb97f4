import lightning as L
import pytest
import torch

from vocseg import Schedule, VocsegError


def rates(schedule, length, count):
    return [schedule.factor(position, length) for position in range(count)]


def test_poly_is_deeplabs():
    assert rates(Schedule("poly", power=0.9), 10, 10) == pytest.approx([(1 - t / 10) ** 0.9 for t in range(10)])


def test_cosine_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(Schedule("cosine"), 8, 8) == pytest.approx(expected)


@pytest.mark.parametrize("growth", [1, 2])
def test_cosine_with_restarts_equals_torchs(growth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=growth)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(Schedule("cosine_restarts", cycle=3, cycle_growth=growth), 0, 12) == pytest.approx(expected)


def test_warmup_grows_to_the_full_rate_and_no_rate_is_zero_before_the_end():
    factors = rates(Schedule("poly", warmup=4), 20, 20)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)
    assert min(factors) > 0


def test_after_its_length_the_rate_stays():
    assert rates(Schedule("cosine", length=4), 4, 7)[4:] == [0, 0, 0]


@pytest.mark.parametrize("settings", [{"length": 0}, {"length": -1}, {"warmup": -1}, {"warmup": 5, "length": 5}])
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(VocsegError, match="schedule's"):
        Schedule("poly", **settings)


@pytest.mark.parametrize("settings", [{}, {"cycle": 0}, {"cycle": 5, "cycle_growth": 0.5}])
def test_impossible_restarts_are_refused(settings):
    with pytest.raises(VocsegError, match="cycle of at least 1 step"):
        Schedule("cosine_restarts", **settings)


def test_a_run_without_end_needs_a_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    endless = L.Trainer(max_epochs=-1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(VocsegError, match="max_epochs"):
        Schedule("cosine", interval="epoch").attach(optimizer, endless)
    assert Schedule("cosine", length=3).attach(optimizer, endless)["interval"] == "step"
