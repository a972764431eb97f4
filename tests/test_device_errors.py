"""A full memory, and an operation without a deterministic kernel, are explained; other errors are left as they are."""

import numpy as np
import pytest
import torch

from vocseg.device_errors import explain_device_error

NETWORK = """
import torch
from vocseg import LinearHead


class TooLarge(LinearHead):
    def forward(self, features):
        return torch.empty(10**15) if {when} else super().forward(features)


class Random(LinearHead):
    def forward(self, features):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        return super().forward(features)


class Broken(LinearHead):
    def forward(self, features):
        raise RuntimeError("a fault of its own")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, when="True"):
        (tmp_path / f"{name}.py").write_text(NETWORK.format(when=when))

    return write


def test_a_fit_that_needs_too_much_memory_names_the_options_that_need_less(own, vocseg, fit_flags):
    own("large_in_fit")
    status, _, err = vocseg(*fit_flags, "--model.decoder", "large_in_fit.TooLarge")
    assert status == 1
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("vocseg: the memory of this machine was full when 3,725,290.3 GiB more were needed.")
    assert all(option in last for option in ("--data.batch_size", "--trainer.accumulate_grad_batches", "bf16-mixed"))


def test_a_test_that_needs_too_much_memory_names_other_options(own, vocseg, fit_flags):
    own("large_in_test", when="not self.training and not torch.is_grad_enabled() and features[0].shape[0] == 3")
    few = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--name", "large"]
    assert vocseg(*fit_flags, *few, "--model.decoder", "large_in_test.TooLarge")[0] == 0
    status, _, err = vocseg("test", "--ckpt_path", "large", "--data.batch_size", 3)
    assert status == 1
    assert "Traceback" not in err
    assert "--inference.window" in err.splitlines()[-1]


def test_an_operation_without_a_deterministic_kernel_is_named(own, vocseg, fit_flags):
    own("random_step")
    try:
        status, _, err = vocseg(*fit_flags, "--model.decoder", "random_step.Random", "--trainer.deterministic", "true")
    finally:
        torch.use_deterministic_algorithms(False)
    assert status == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("vocseg: put_ has no deterministic implementation on this device.")
    assert "--trainer.deterministic warn" in err


def test_other_errors_keep_their_traceback(own, vocseg, fit_flags):
    own("broken_in_fit")
    with pytest.raises(RuntimeError, match="a fault of its own"):
        vocseg(*fit_flags, "--model.decoder", "broken_in_fit.Broken")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."),
            "the memory of this GPU was full when 2.50 GiB more were needed.",
        ),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 1.20 GB on shared pool."),
            "the memory of this MPS device was full when 1.20 GB more were needed.",
        ),
        (
            RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nDefaultCPUAllocator: not enough memory"),
            "the memory of this machine was full.",
        ),
        (MemoryError(), "the memory of this machine was full."),
    ],
)
def test_memory_of_every_device(error, start):
    assert explain_device_error(error, "export") == start


def test_what_numpy_could_not_allocate():
    with pytest.raises(MemoryError) as raised:
        np.empty(10**16, np.uint8)
    assert "when 8.88 PiB more were needed." in str(explain_device_error(raised.value, "fit"))


def test_an_error_of_another_kind_is_not_explained():
    assert explain_device_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "fit") is None
