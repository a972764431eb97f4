"""The README's example runs as written, and its other commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from vocseg import VOCDataModule
from vocseg.experiments import list_experiments
from vocseg.lightning_cli import VocsegCLI, run

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_trains_saves_and_loads_in_a_fresh_process(tmp_path):
    blocks = dict(re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", README, re.DOTALL))
    assert set(blocks) == {"my_backbone.py", "train.py", "load.py"}
    for name, code in blocks.items():
        (tmp_path / name).write_text(code)
    for name in ("train.py", "load.py"):
        done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 3, 33, 47])"


def test_the_experiments_it_names_exist():
    names = set(re.findall(r"vocseg fit --config (\w+)", README))
    assert names
    assert names <= {name for name, _ in list_experiments()}


def test_its_transforms_are_valid():
    _, block = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(VOCDataModule("nowhere", **yaml.safe_load(block)["data"]).train_transforms) == 3


def test_its_second_config_goes_on_top_of_an_experiment(tmp_path, monkeypatch):
    class Instantiated(VocsegCLI):
        def fit(self, **kwargs):
            pass

        def after_fit(self):
            pass

    monkeypatch.chdir(tmp_path)
    block, _ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "more.yaml").write_text(block)
    cli = run(["fit", "--config", "unet_pooled", "--config", "more.yaml"], Instantiated)
    assert (cli.model.schedule.kind, cli.model.loss.gamma, cli.config["fit"].early_stopping) == ("cosine", 2, 10)
    assert type(cli.model.backbone).__name__ == "UNetEncoder"
