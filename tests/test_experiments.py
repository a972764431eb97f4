"""Every packaged experiment can be parsed and instantiated, and its comments contain its command."""

import pytest
import yaml

from vocseg.experiments import experiments_folder, list_experiments
from vocseg.lightning_cli import VocsegCLI, run

NAMES = [name for name, _ in list_experiments()]


class InstantiateOnly(VocsegCLI):
    """Command line that skips the training."""

    def fit(self, **kwargs):
        pass

    def after_fit(self):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_experiments_can_be_instantiated(name):
    backbone = yaml.safe_load((experiments_folder() / f"{name}.yaml").read_text())["model"]["backbone"]
    settings = {} if isinstance(backbone, str) else backbone["init_args"]
    weights = ["--model.backbone.weights", "null"] if "weights" in settings else []
    cli = run(["fit", "--config", name, *weights], InstantiateOnly)
    assert len(cli.model.class_names) == len(cli.datamodule.class_names)
    assert cli.trainer.max_epochs > 0


@pytest.mark.parametrize("name", NAMES)
def test_experiments_begin_with_a_description_and_contain_their_command(name):
    text = (experiments_folder() / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert f"vocseg fit --config {name}" in text or f"vocseg fit --config experiments/{name}.yaml" in text
