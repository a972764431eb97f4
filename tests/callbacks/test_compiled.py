"""fit --compile: the same results and checkpoints, evaluation as it is, and words where there is no compiler."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VocsegError, WholeNetwork
from vocseg.callbacks import CachedFeatures, CompiledTraining, WeightEMA
from vocseg.checkpoints import read_checkpoint

CLASSES = ["background", "a", "b"]
SMALL = partial(SkipDecoder, width=4, dropout=0.0)
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Graphs:
    """A backend of torch.compile that counts the compiled graphs and runs them as they are."""

    def __init__(self):
        self.sizes = []

    def __call__(self, graph, inputs):
        self.sizes.append([tuple(value.shape) for value in inputs if getattr(value, "ndim", 0) == 4])
        return graph.forward


def fit(task, *callbacks, tmp_path, epochs=2, resume=None):
    torch.manual_seed(1)
    images, masks = torch.rand(4, 3, 16, 16), torch.randint(0, 3, (4, 16, 16))
    train = DataLoader(TensorDataset(images, masks), batch_size=2)
    val = [
        {"image": torch.rand(1, 3, side, side + 8), "mask": torch.zeros(1, side, side + 8).long()}
        for side in (16, 24, 40)
    ]
    trainer = L.Trainer(max_epochs=epochs, default_root_dir=tmp_path, callbacks=list(callbacks), **QUIET)
    trainer.fit(task, train, DataLoader(val, batch_size=None), ckpt_path=resume)
    return trainer


def make(freeze=False, **settings):
    torch.manual_seed(0)
    backbone = StridedEncoder(widths=(4, 8))
    if freeze:
        backbone.freeze()
    return SegmentationTask(backbone, SMALL, CLASSES, optimizer=partial(torch.optim.SGD, lr=0.1), **settings)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("settings", [{}, {"auxiliary": SMALL}, {"freeze": True}], ids=str)
def test_results_and_keys_are_the_same_and_evaluation_compiles_nothing(settings, tmp_path):
    graphs, plain, compiled = Graphs(), make(**settings), make(**settings)
    fit(plain, tmp_path=tmp_path)
    fit(compiled, CompiledTraining(graphs), tmp_path=tmp_path)
    assert equal(plain.state_dict(), compiled.state_dict())
    assert len(graphs.sizes) == 2  # the check of the compiler, and the training step as one graph
    assert "training_losses" not in vars(compiled)


def test_it_works_with_averages_cached_features_and_resumed_runs(tmp_path):
    expected = fit(make(freeze=True), WeightEMA(0.5), tmp_path=tmp_path).lightning_module.state_dict()
    callbacks = [WeightEMA(0.5), CompiledTraining("eager"), CachedFeatures(0.1)]
    saved = ModelCheckpoint(tmp_path, "half")
    fit(make(freeze=True), *callbacks, saved, tmp_path=tmp_path, epochs=1)
    path = saved.best_model_path
    assert set(read_checkpoint(path)["state_dict"]) == set(expected)
    resumed = fit(make(freeze=True), *callbacks, tmp_path=tmp_path, resume=path).lightning_module
    assert equal(resumed.state_dict(), expected)
    assert SegmentationTask.load_from_checkpoint(path).init_from(path)


def test_a_whole_network_compiles(tmp_path):
    graphs = Graphs()
    task = SegmentationTask(WholeNetwork(torch.nn.Conv2d(3, 3, 1), stride=1), class_names=CLASSES)
    fit(task, CompiledTraining(graphs), tmp_path=tmp_path, epochs=1)
    assert len(graphs.sizes) == 2


def test_the_flag_reaches_the_task_and_is_saved(fit_flags, vocseg, monkeypatch, tmp_path):
    graphs = Graphs()
    monkeypatch.setattr("vocseg.lightning_cli.CompiledTraining", partial(CompiledTraining, graphs))
    status, _, err = vocseg(*fit_flags, "--compile", "true", "--trainer.max_epochs", 1)
    assert status == 0, err
    assert len(graphs.sizes) >= 2
    assert "compile: true" in (tmp_path / "lightning_logs/quickstart/version_0/config.yaml").read_text()


def test_without_a_compiler_the_fit_ends_in_one_line(fit_flags, vocseg, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    status, _, err = vocseg(*fit_flags, "--compile", "true")
    assert status == 1
    assert "needs a C++ compiler, but there is no /nowhere/g++: install one" in err
    assert len(err.strip().splitlines()) == 1


def test_a_backend_that_fails_is_found_before_training(tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("no triton")

    with pytest.raises(VocsegError, match=r"cannot compile for cpu here \(.*no triton"):
        fit(make(), CompiledTraining(broken), tmp_path=tmp_path)


def test_other_tasks_are_refused(tmp_path):
    with pytest.raises(VocsegError, match="needs a SegmentationTask"):
        CompiledTraining("eager").on_fit_start(L.Trainer(**QUIET), L.LightningModule())
