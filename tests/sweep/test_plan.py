"""What a sweep file and flags mean, and what is refused before anything is trained."""

import pytest

from vocseg.errors import VocsegError
from vocseg.sweep.plan import read_plan

FILE = """
name: backbones
runs:
  mobilenet: mobilenet
  lite: {config: [efficientnet_lite, more.yaml], set: {model.optimizer.lr: 1e-3}}
seeds: [0, 1]
set: {trainer.max_epochs: 5, data.in_memory: false, model.optimizer.lr: 2e-3, data.image_size: [32, 48]}
grid: {data.batch_size: [8, 16]}
test: true
"""


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 2}\n")
    (tmp_path / "my.yaml").write_text(FILE)
    return "my.yaml"


def test_a_file_gives_each_run_its_settings(sweep_file):
    plan = read_plan(sweep_file)
    assert (plan.name, plan.folder.as_posix(), plan.seeds, plan.splits) == (
        "backbones",
        "sweeps/backbones",
        [0, 1],
        ["val", "test"],
    )
    names = ["mobilenet-batch_size=8", "mobilenet-batch_size=16", "lite-batch_size=8", "lite-batch_size=16"]
    assert [setting.name for setting in plan.settings] == names
    lite = plan.settings[3]
    assert lite.words()[:4] == ["--config", "efficientnet_lite", "--config", "more.yaml"]
    assert (
        dict(lite.options)
        == {
            "trainer.max_epochs": "5",
            "data.in_memory": "false",
            "data.image_size": "[32, 48]",
            "model.optimizer.lr": "1e-3",
            "data.batch_size": "16",
        }
        or dict(lite.options)["model.optimizer.lr"] == "1e-3"
    )
    assert [job.name for job in plan.jobs()] == [f"{name}-seed_{seed}" for seed in (0, 1) for name in names]
    job = plan.jobs()[-1]
    assert job.fit[-6:] == [
        *("--name", "lite-batch_size=16-seed_1", "--seed_everything", "1"),
        *("--trainer.default_root_dir", "sweeps/backbones"),
    ]
    # of what a checkpoint holds, nothing is repeated
    assert job.scoring == ["--trainer.max_epochs", "5", "--trainer.default_root_dir", "sweeps/backbones"]


def test_flags_win_over_the_file(sweep_file):
    plan = read_plan(
        sweep_file,
        name="mine",
        seeds=[7],
        sets=["data.batch_size=4", "model.optimizer.lr=1e-1,1e-2"],
        test=False,
        options=["--trainer.max_epochs", "1", "--data.root=x"],
    )
    assert (plan.name, plan.seeds, plan.splits) == ("mine", [7], ["val"])
    assert [setting.name for setting in plan.settings] == [
        f"{name}-lr={lr}" for name in ("mobilenet", "lite") for lr in ("1e-1", "1e-2")
    ]
    for setting in plan.settings:
        options = [name for name, _ in setting.options]
        assert len(options) == len({*options})
        assert dict(setting.options)["data.batch_size"] == "4"
        assert dict(setting.options)["trainer.max_epochs"] == "1"
        assert dict(setting.options)["data.root"] == "x"
    assert [dict(setting.options)["model.optimizer.lr"] for setting in plan.settings] == ["1e-1", "1e-2"] * 2
    assert [setting.name for setting in read_plan(sweep_file, configs=["focal"]).settings] == [
        "batch_size=8",
        "batch_size=16",
    ]


def test_flags_alone_give_a_run_for_each_combination():
    sets = ["model.optimizer.lr=1e-3,3e-4", "inference.scales=[0.75, 1],[1]", "model.backbone=MobileNetV2"]
    plan = read_plan(configs=["mobilenet", "focal"], sets=sets)
    assert plan.name == "mobilenet-focal"
    assert [setting.name for setting in plan.settings][:2] == [
        "mobilenet-lr=1e-3-scales=0.75_1",
        "mobilenet-lr=1e-3-scales=1",
    ]
    assert len(plan.settings) == 8
    assert dict(plan.settings[0].options)["inference.scales"] == "[0.75, 1]"


def test_a_component_comes_before_its_settings(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "{runs: {a: {config: mobilenet, set: {model.backbone: Timm}}}, set: {model.backbone.weights: null}}"
    )
    options = read_plan(str(file), sets=["model.backbone.name=resnet18"]).settings[0].options
    expected = [("model.backbone", "Timm"), ("model.backbone.weights", "null"), ("model.backbone.name", "resnet18")]
    assert options == expected


def test_settings_with_one_last_word_keep_more_of_their_names():
    plan = read_plan(configs=["mobilenet"], sets=["model.backbone.width=1,2", "model.decoder.width=3,4"])
    assert plan.settings[0].name == "backbone.width=1-decoder.width=3"
    assert read_plan(configs=["focal"], sets=["model.backbone.name=a,b"]).settings[1].name == "b"


def test_the_digest_tells_what_changes_results(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("trainer: {max_epochs: 2}\n")

    def digest(*options):
        return read_plan(configs=[str(config)], options=options).settings[0].facts()["digest"]

    first = digest()
    assert digest("--data.root", "/x/voc", "--trainer.enable_progress_bar", "false") == first
    assert digest("--data.batch_size", "4") != first
    config.write_text("# a comment\ntrainer: {max_epochs: 2}\n")
    assert digest() == first
    config.write_text("trainer: {max_epochs: 3}\n")
    assert digest() != first


MISTAKES = {
    "run: {a: focal}": "my.yaml: there is no key 'run'. Did you mean 'runs'?",
    "runs: {a: {confg: focal}}": "my.yaml: run 'a': there is no key 'confg'. Did you mean 'config'?",
    "runs: {a: mobilnet}": "my.yaml: run 'a': There is no config 'mobilnet'",
    "runs: {a: focal, a: cosine}": "my.yaml: the name 'a' stands twice",
    "runs: [focal, focal]": "my.yaml: two runs have the name 'focal'",
    "runs: [a/focal, b/focal]": "my.yaml: two runs have the name 'focal'",
    "runs: {}": "my.yaml: runs must map names to configs",
    "runs: [1]": "my.yaml: runs must map names to configs",
    "seeds: [0]": "my.yaml: there is nothing to run",
    "runs: {a: []}": "my.yaml: run 'a': config must be",
    "runs: {a/b: focal}": "my.yaml: the name of run may have only letters",
    "{runs: [focal], seeds: []}": "my.yaml: seeds must be different integers",
    "{runs: [focal], seeds: [0, 0]}": "my.yaml: seeds must be different integers",
    "{runs: [focal], seeds: [-1]}": "my.yaml: seeds must be different integers",
    "{runs: [focal], seeds: 3}": "my.yaml: seeds must be different integers",
    "{runs: [focal], test: 1}": "my.yaml: test must be true or false; got 1",
    "{runs: [focal], set: [1]}": "my.yaml: set must map settings to values",
    "{runs: [focal], grid: {data.batch_size: []}}": "my.yaml: grid must map settings to lists",
    "{runs: [focal], grid: {data.batch_size: 8}}": "my.yaml: grid must map settings to lists",
    "{runs: [focal], grid: {data.batch_size: [8, 8]}}": "my.yaml: two runs have the name 'batch_size=8'",
    "{runs: [focal], set: {seed_everything: 1}}": "seed_everything is not for a sweep: give seeds",
    "{runs: [focal], set: {trainer.logger: false}}": "trainer.logger is not for a sweep: a sweep reads the files",
    "runs: [focal": "my.yaml cannot be read as YAML",
    "- focal": "my.yaml must hold keys and values",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_is_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(VocsegError) as caught:
        read_plan("my.yaml")
    assert MISTAKES[text] in str(caught.value)
    assert "\n" not in str(caught.value)


FLAGS = {
    ("sweps.yaml",): "There is no sweep file sweps.yaml. Did you mean 'sweeps.yaml'?",
    ("--config", "focal", "--nam", "x"): "run 'focal': There is no option 'nam'. Did you mean 'name'?",
    (): "There is nothing to run: vocseg sweep my_runs.yaml",
    ("--config", "focal", "--set", "model.optimizer.lr"): "--set model.optimizer.lr: give a setting and its values",
    ("--config", "focal", "--set", "data.batch_size=1,,2"): "give a setting and its values",
    ("--config", "focal", "--set", "data.batch_size="): "give a setting and its values",
    ("--config", "focal", "--seeds", "x"): "argument --seeds: invalid int value: 'x'",
    ("--config", "focal", "--test", "maybe"): "must be true or false, got 'maybe'",
    ("--config", "focal", "--name", "a/b"): "the name of the sweep may have only letters",
    ("--config", "focal", "--nam"): "There is no option --nam. Did you mean 'name'?",
    ("--config", "focal", "--data.root"): "--data.root needs a value",
    ("--config", "focal", "--seed", "0", "1"): "There is no option --seed. Did you mean 'seeds'?",
    ("--config", "sweeps.yaml"): "sweeps.yaml is a sweep file, and no config. It comes first: vocseg sweep sweeps.yaml",
    ("--config", "focal", "--to", "sweeps.yaml"): "sweeps.yaml cannot be written: File exists. Name another folder",
    ("--config", "focal", "--data.batchsize", "3"): "run 'focal': There is no option 'data.batchsize'.",
    ("--config", "focal", "--set", "model.optimizer.lr=1e-3,fast"): "run 'lr=fast': model.optimizer",
    ("--check", "nowhere"): "There is no record nowhere",
    ("--check", "nowhere", "--seeds", "1"): "--check takes all settings from the record",
}


@pytest.mark.parametrize("words", FLAGS)
def test_a_mistake_in_the_flags_is_named_before_anything_is_written(words, vocseg, tmp_path):
    (tmp_path / "sweeps.yaml").write_text("runs: [focal]")
    status, _, err = vocseg("sweep", *words)
    assert status == 1
    assert FLAGS[words] in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweeps" / "focal").exists()


def test_a_dry_run_lists_the_commands(vocseg, tmp_path):
    status, out, _ = vocseg("sweep", "--config", "focal", "--seeds", "3", "--dry_run", "--data.batch_size", "2")
    assert status == 0
    assert "vocseg fit --config focal --data.batch_size 2 --name focal-seed_3 --seed_everything 3" in out
    assert [*tmp_path.iterdir()] == []
