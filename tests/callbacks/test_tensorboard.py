"""The TensorBoard events of a real run, read with TensorBoard's own EventAccumulator."""

import io
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder
from vocseg.callbacks import LineProgress, MetricsCSV, ResultTable
from vocseg.callbacks.tensorboard import Charts, MaskPreviews, ScoreFigures, covering, draws_now, settings_of


@pytest.fixture(scope="module")
def run(tmp_path_factory, fit_flags, succeed_in):
    """A fit of three epochs and, in the same folder, a test: the run's folder."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--trainer.max_epochs", 3, "--previews.images", 3, "--figures.every_n_epochs", 2]
    run_folder = folder / "lightning_logs" / "quickstart" / "version_0"
    succeed_in(folder, [*fit_flags, *flags], ["test", "--ckpt_path", run_folder / "checkpoints" / "best.ckpt"])
    return run_folder


@pytest.fixture(scope="module")
def events(run):
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def picture(event):
    return np.array(Image.open(io.BytesIO(event.encoded_image_string)))


def test_every_documented_scalar_is_logged_and_nothing_of_the_paper(events):
    names = {"train/loss", "lr-AdamW/backbone", "lr-AdamW/decoder"}
    for split in ("val", "test"):
        names |= {f"{split}/{name}" for name in ("loss", "miou", "pixel_accuracy", "mean_accuracy", "iou/disc")}
    logged = set(events.Tags()["scalars"])
    assert names <= logged
    assert not [name for name in logged if "paper" in name]


def test_training_and_validation_loss_are_in_one_chart(events):
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["loss"] == ["train/loss", "val/loss"]


def test_previews_are_drawn_after_each_validation_and_figures_as_configured(events):
    validations = [event.step for event in events.Scalars("val/miou")]
    assert len(validations) == 3
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("val/preview")]
    assert sorted(tags) == ["val/preview_1", "val/preview_2", "val/preview_3"]
    assert all([event.step for event in events.Images(tag)] == validations for tag in tags)
    assert len(events.Images("val/confusion")) == len(events.Images("val/iou")) == 1
    assert len(events.Images("test/confusion")) == len(events.Images("test/iou")) == 1
    for name in ("val/preview_1", "val/confusion", "val/iou"):
        assert picture(events.Images(name)[0]).std() > 10  # not blank
    first, last = (picture(events.Images("val/preview_1")[index]) for index in (0, -1))
    assert first.shape[1] == last.shape[1] == 4 + 2 * 244
    assert np.array_equal(first[:180], last[:180])  # the same image and truth
    assert not np.array_equal(first[200:380, :200], last[200:380, :200])


def test_a_picture_that_cannot_be_drawn_is_a_warning_and_the_fit_ends(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("vocseg.callbacks.tensorboard.confusion_figure", fail)
    with pytest.warns(UserWarning, match="ScoreFigures could not draw: RuntimeError: no font"):
        fit_plain_tensors(tmp_path, TensorBoardLogger(tmp_path, "a", "b"), [MaskPreviews(2), ScoreFigures()])
    events = EventAccumulator(str(tmp_path / "a" / "b")).Reload()
    assert set(events.Tags()["images"]) == {"val/preview_1", "val/preview_2"}


def test_a_later_test_is_logged_at_the_step_of_its_checkpoint(run, events):
    steps = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert [event.step for event in events.Scalars("test/miou")] == [steps - 1]


def test_hparams_declare_both_metrics_and_not_lightnings_default(events):
    contents = events.SummaryMetadata  # declared in the first record, before any score was known
    plugins = {}
    for name in ("_hparams_/experiment", "_hparams_/session_start_info"):
        plugins[name] = plugin_data_pb2.HParamsPluginData.FromString(contents(name).plugin_data.content)
    experiment = plugins["_hparams_/experiment"].experiment
    assert {info.name.tag for info in experiment.metric_infos} == {"val/miou", "test/miou"}
    shown_first = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown_first == {"optimizer/lr", "loss", "decoder", "backbone"}
    started = plugins["_hparams_/session_start_info"].session_start_info.hparams
    assert started["backbone"].string_value == "StridedEncoder"
    assert started["loss"].string_value == "CrossEntropy"
    assert started["optimizer/lr"].number_value == 0.003
    assert started["data/batch_size"].number_value == 4
    assert "hp_metric" not in events.Tags()["scalars"]
    assert all(event.value > 0 for event in events.Scalars("val/miou"))  # no placeholder as the first value


def fit_plain_tensors(folder, logger, callbacks, task=None):
    """Fits on random tensors, without our data module."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 24, generator=generator)
    masks = torch.randint(0, 3, (4, 16, 24), generator=generator)
    loader = DataLoader(TensorDataset(images, masks), batch_size=2)
    trainer = L.Trainer(
        default_root_dir=folder,
        logger=logger,
        callbacks=callbacks,
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    task = task or SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, ["background", "a", "b"])
    trainer.fit(task, loader, loader)


def test_images_of_other_data_are_drawn_too(tmp_path):
    fit_plain_tensors(tmp_path, TensorBoardLogger(tmp_path, "a", "b"), [Charts(), MaskPreviews(2), ScoreFigures()])
    events = EventAccumulator(str(tmp_path / "a" / "b")).Reload()
    assert {"val/preview_1", "val/preview_2", "val/confusion", "val/iou"} <= set(events.Tags()["images"])


class UsersTask(L.LightningModule):
    """A task without class names, results and hyperparameters, which returns something else from its steps."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def training_step(self, batch, batch_idx):
        return {"loss": torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])}

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_of_a_task_that_is_not_ours_nothing_is_drawn(tmp_path):
    callbacks = [Charts(), MaskPreviews(2), ScoreFigures(), MetricsCSV(), ResultTable(), LineProgress()]
    fit_plain_tensors(tmp_path, TensorBoardLogger(tmp_path, "a", "b"), callbacks, UsersTask())
    assert EventAccumulator(str(tmp_path / "a" / "b")).Reload().Tags()["images"] == []
    assert (tmp_path / "a" / "b" / "metrics.csv").is_file()


def test_without_tensorboard_nothing_is_written(tmp_path):
    fit_plain_tensors(tmp_path, CSVLogger(tmp_path), [Charts(), MaskPreviews(2), ScoreFigures()])
    assert not list(tmp_path.rglob("events*"))


def test_the_pictures_can_be_switched_off(tmp_path):
    fit_plain_tensors(
        tmp_path, TensorBoardLogger(tmp_path, "a", "b"), [MaskPreviews(0), MaskPreviews(2, 0), ScoreFigures(0)]
    )
    assert EventAccumulator(str(tmp_path / "a" / "b")).Reload().Tags()["images"] == []


@pytest.mark.parametrize(
    ("epochs", "between_validations", "every_n_epochs", "pictures"),
    [
        *((40, 1, None, 40), (200, 1, None, 50), (1000, 1, None, 50), (100, 5, None, 20), (1000, 5, None, 50)),
        *((-1, 1, None, 300), (200, 1, 2, 100), (200, 1, 0, 0)),
    ],
)
def test_a_long_run_draws_about_fifty_pictures(epochs, between_validations, every_n_epochs, pictures, tmp_path):
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, loggers=[TensorBoardLogger(tmp_path)]
    )
    trainer.is_global_zero, trainer.fast_dev_run = True, False
    trainer.max_epochs, trainer.check_val_every_n_epoch = epochs, between_validations
    drawn = 0
    for trainer.current_epoch in range(between_validations - 1, epochs if epochs > 0 else 300, between_validations):
        drawn += draws_now(trainer, every_n_epochs)
    assert drawn == pictures
    trainer.state.fn = "validate"
    assert draws_now(trainer, every_n_epochs) == (every_n_epochs != 0)


def test_images_are_chosen_to_cover_the_classes():
    shares = np.zeros((5, 4))
    shares[0, 1] = 0.9  # much of class 1
    shares[1, [1, 2]] = 0.2  # some of 1 and 2
    shares[2, 3] = 0.3  # class 3 alone
    shares[3, 0] = 1.0  # background only
    assert covering(shares, 2) in ([0, 2], [1, 2])
    assert covering(shares, 3) == [0, 1, 2]
    assert len(covering(shares, 9)) == 5


def test_settings_of_somebodys_own_module_may_be_text():
    class Own(L.LightningModule):
        def __init__(self, backbone="resnet", loss=None):
            super().__init__()
            self.save_hyperparameters()

    chosen = settings_of(L.Trainer(accelerator="cpu", logger=False), Own())
    assert chosen["backbone"] == "resnet"
