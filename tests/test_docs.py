"""The examples and the code in the documentation run as they stand there."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VOCDataModule, export_task
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.lightning_cli import VocsegCLI, run

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def code(page, name):
    text = (ROOT / "docs" / page).read_text()
    return re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)[1]


class Instantiated(VocsegCLI):
    """Builds everything and trains nothing."""

    def fit(self, **kwargs):
        pass

    def after_fit(self):
        pass


@pytest.fixture
def in_examples(tmp_path, monkeypatch):
    """A copy of the examples as the current folder."""
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_training_in_python_and_loading_in_a_fresh_process(in_examples):
    for name in ("train.py", "load.py"):
        done = subprocess.run([sys.executable, name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 3, 33, 47])"


def test_a_config_names_backbone_decoder_and_loss_of_the_examples(in_examples):
    words = ["--model.backbone", "my_backbone.MyBackbone", "--model.decoder", "my_decoder.SumDecoder"]
    words += ["--model.decoder.width", "8", "--model.loss", "my_loss.PolyLoss", "--model.loss.epsilon", "2"]
    model = run(["fit", "--config", "quickstart", *words], Instantiated).model
    logits = model(torch.rand(2, 3, 33, 47))
    assert logits.shape == (2, len(SYNTHETIC_CLASSES), 33, 47)
    mask = torch.full((2, 33, 47), 255)
    assert model.loss(logits, mask) == 0
    mask[:, :5] = 1
    probability = logits.softmax(1)[:, 1, :5]
    expected = (-probability.log() + 2 * (1 - probability)).mean()
    torch.testing.assert_close(model.loss(logits, mask), expected)


def test_the_example_of_data(in_examples):
    from my_data import CSVData

    with open("samples.csv", "w", newline="") as file:
        csv.writer(file).writerows([["role", "image", "mask"], ["train", "a.jpg", "a.png"], ["val", "b.jpg", "b.png"]])
    data = CSVData("samples.csv", ["background", "cat"])
    assert [sample.image.name for sample in data.samples("train")] == ["a.jpg"]


def test_the_example_of_a_task_adds_its_loss(in_examples):
    from more_loss import ConfidentTask

    import vocseg

    names = ["background", "cat", "dog"]
    task = ConfidentTask(StridedEncoder(), vocseg.SkipDecoder, names, entropy_weight=0.5)
    task.log = lambda *args, **settings: None
    step = task.training_step((torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)), 0)
    probabilities = step["logits"].softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    plain = task.loss(step["logits"], torch.zeros(2, 32, 32, dtype=torch.long))
    torch.testing.assert_close(step["loss"], plain + 0.5 * entropy)


def test_the_transforms_are_valid():
    settings = yaml.safe_load(code("experiments.md", "transforms.yaml"))["data"]
    assert len(VOCDataModule("nowhere", **settings).train_transforms) == 3


def test_the_second_config_goes_on_top_of_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(code("experiments.md", "more.yaml"))
    cli = run(["fit", "--config", "unet_pooled", "--config", "more.yaml"], Instantiated)
    assert (cli.model.schedule.kind, cli.model.loss.gamma, cli.config["fit"].early_stopping) == ("cosine", 2, 10)
    assert type(cli.model.backbone).__name__ == "UNetEncoder"


@pytest.mark.parametrize("name", ["smp.py", "torchgeo.py"])
def test_the_code_for_migration_runs(name):
    namespace = {}
    exec(code("migration.md", name), namespace)
    assert namespace["task"].eval()(torch.rand(1, 3, 64, 64)).shape == (1, 21, 64, 64)


def test_the_score_of_an_exported_file(tmp_path, monkeypatch, voc_root, capsys):
    pytest.importorskip("onnxruntime", reason="the extra vocseg[export] is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VOCtrainval_06-Nov-2007").symlink_to(voc_root)
    task = SegmentationTask(StridedEncoder(widths=[4, 8]), SkipDecoder, SYNTHETIC_CLASSES)
    export_task(task, "exported.onnx")
    namespace = {}
    exec(code("export.md", "scores"), namespace)
    assert len(namespace["result"].matrices) == 4
    assert np.isnan(namespace["result"].loss)  # which is not computed
    assert "mIoU" in capsys.readouterr().out


def test_the_notebooks_run_and_are_committed_with_their_outputs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import notebooks

    for name, executed in notebooks.execute(tmp_path).items():
        path = EXAMPLES / f"{name}.ipynb"
        committed = nbformat.read(path, as_version=4)
        assert kinds_of_outputs(committed) == kinds_of_outputs(executed), "run python docs/notebooks.py"
        assert path.stat().st_size < 400_000


def kinds_of_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.source, [[*output.get("data", ["text"])] for output in cell.outputs]) for cell in code]


def test_a_plain_command_line_of_lightning_takes_short_names(tmp_path):
    (tmp_path / "plain_cli.py").write_text(code("extend.md", "plain_cli.py").replace("VOCData", "SyntheticData"))
    words = ["fit", "--model.backbone", "StridedEncoder", "--model.decoder", "SkipDecoder"]
    words += ["--trainer.fast_dev_run", "true", "--data.image_size", "32", "--data.num_workers", "0"]
    done = subprocess.run([sys.executable, "plain_cli.py", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_data_of_a_folder_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, shape in (("images", (30, 40, 3)), ("masks", (30, 40))):
        for name in ("train/a.png", "train/b.png", "val/c.png"):
            path = tmp_path / "my_data" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros(shape, np.uint8)
            pixels[10:20, 10:30], pixels[20:25, 10:30] = 1, 2
            Image.fromarray(pixels).save(path)
    exec(code("own_data.md", "show.py"), {})
    assert (tmp_path / "batch.png").is_file()
