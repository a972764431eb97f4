"""What answers without Lightning, and how the package is installed."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vocseg as package
from vocseg.cli import main
from vocseg.errors import VocsegError
from vocseg.experiments import resolve_config

REPOSITORY = Path(__file__).parent.parent
NAMES = {"baseline", "mobilenet", "quickstart", "transfer"}


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vocseg {package.__version__}\n"
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in ("fit", "validate", "test", "predict", "experiments"))


def test_help_and_version_import_nothing_heavy():
    """What makes them quick: neither torch nor lightning is imported."""
    code = (
        "import sys; from vocseg.cli import main; main(['--help']); main(['--version']); main(['experiments']); "
        "print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_experiments_are_listed_with_one_line_each(capsys):
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= NAMES
    assert all(len(line.split()) > 5 for line in lines)


def test_experiments_are_wrapped_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if not line.startswith(" ")} >= {*NAMES, "upernet_convnext_tiny"}
    assert {len(line) - len(line.lstrip()) for line in lines} == {0, 22}


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which nobody may write")
def test_a_folder_in_which_nothing_may_be_written_is_named(capsys):
    assert main(["inspect", "--data", "SyntheticDataModule", "--to", "/sys/kernel/inspect"]) == 1
    err = capsys.readouterr().err
    assert "vocseg: /sys/kernel/inspect cannot be read or written" in err
    assert "Traceback" not in err


COMPLETED = {
    "exper": "experiments",
    "fit --model.dec": "--model.decoder",
    "fit --config quick": "quickstart",
    "validate --inference.fl": "--inference.flip",
    "test --sco": "--scores",
    "predict --data.predict_p": "--data.predict_path",
    "demo --max_megap": "--max_megapixels",
    "submit --compet": "--competition",
    "export --ops": "--opset",
    "export --format torch": "torch_export",
    "inspect --seed_ev": "--seed_everything",
    "sweep --dry": "--dry_run",
    "sweep --config quick": "quickstart",
    "report --t": "--to",
    "paper rows --res": "--results",
    "paper tables --data.y": "--data.year",
}
"""What a shell makes of the beginning of a word."""


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
def test_bash_completes_commands_options_and_experiments(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["--print_shtab=bash"]) == 0
    script = tmp_path / "vocseg.bash"
    script.write_text(
        capsys.readouterr().out
        + '\ntry() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_vocseg; echo "${COMPREPLY[@]}"; }\n'
        + "".join(f"try vocseg {words}\n" for words in COMPLETED)
    )
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.stdout.split() == [*COMPLETED.values()], done.stderr
    (tmp_path / "weights.pt").touch()
    script.write_text(f"{script.read_text()}cd {tmp_path}\ntry vocseg submit --ckpt_path weig\n")
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.stdout.split()[-1] == "weights.pt", done.stderr


def test_completion_for_another_shell_is_refused(capsys):
    assert main(["--print_shtab", "fish"]) == 1
    assert "must be one of bash, zsh, tcsh; got 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["transfer", "transfer.yaml", "experiments/transfer.yaml"])
def test_experiments_are_found_by_name_where_no_such_file_is(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(resolve_config(given)) == REPOSITORY / "experiments" / "transfer.yaml"
    (tmp_path / "experiments").mkdir()
    for name in ("transfer", "transfer.yaml", "experiments/transfer.yaml"):
        (tmp_path / name).write_text("mine: true")
    assert resolve_config(given) == given


@pytest.mark.parametrize("given", ["elsewhere/transfer.yaml", "transfer.json", "trasnfer"])
def test_other_paths_do_not_fall_back(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VocsegError, match="transfer"):
        resolve_config(given)


def test_the_public_names_exist():
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = package.Nonsense


def test_the_wheel_carries_the_experiments(tmp_path):
    """Built as pip builds it, unpacked elsewhere, run from an empty folder."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert not [name for name in names if name.startswith(("tests", "experiments", "lightning_logs", "benchmarks"))]
    assert not [name for name in names if name.endswith((".md", ".json", ".png"))]
    assert {f"vocseg/demo/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    empty.mkdir()
    code = (
        "from vocseg.cli import main; from vocseg.experiments import resolve_config; main(['experiments']); "
        "[print(resolve_config(name)) for name in ('transfer', 'transfer.yaml', 'experiments/transfer.yaml')]"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    *listed, first, second, third = done.stdout.splitlines()
    assert {line.split()[0] for line in listed} >= NAMES, done.stderr
    assert first == second == third == str(site / "vocseg" / "packaged_experiments" / "transfer.yaml")


def test_python_m_vocseg():
    done = subprocess.run([sys.executable, "-m", "vocseg", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"vocseg {package.__version__}"
