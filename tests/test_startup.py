"""What a command imports. No timings: they depend on the machine."""

import json
import subprocess
import sys

import pytest

THIRD_PARTIES = "import lightning.pytorch.cli, albumentations, torch.utils.tensorboard, docstring_parser, rich.progress"
"""What a fit uses of other packages; Lightning imports torchmetrics, and that SciPy, Matplotlib and torchvision."""


def run(code, folder=None, *args):
    code = f"import json, sys; {code}"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_command_line_adds_no_package_to_those_it_needs():
    """Not timm, for one, which takes a second and which few configs name."""
    packages = "{name.partition('.')[0] for name in sys.modules}"
    code = f"before = {packages}; import vocseg.lightning_cli; print(json.dumps(sorted({packages} - before)))"
    added, _ = run(f"{THIRD_PARTIES}; {code}")
    assert not {"timm", "pandas", "sklearn", "shtab", "onnx"} & set(added)
    assert [name for name in added if name not in sys.stdlib_module_names and not name.startswith("_")] == ["vocseg"]


def test_a_fit_imports_no_package_that_its_config_does_not_name(fit_flags, tmp_path):
    code = (
        "import gc; from vocseg.cli import main; assert main(sys.argv[1:]) == 0; "
        "print(json.dumps([sorted(sys.modules), gc.isenabled(), gc.get_freeze_count()]))"
    )
    (modules, collecting, frozen), err = run(code, tmp_path, *fit_flags, "--trainer.max_epochs", "1")
    assert not {"timm", "segmentation_models_pytorch", "vocseg.report", "vocseg.paper"} & {*modules}
    assert collecting
    assert frozen > 100_000  # the objects of the imports are left out of later collections
    assert "leaked" not in err


@pytest.mark.parametrize("word", ["report", "paper"])
def test_the_help_of_other_commands_imports_neither_torch_nor_timm(word):
    code = (
        "from vocseg.cli import main\ntry: main([sys.argv[1], '--help'])\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules, _ = run(code, None, word)
    assert not {"torch", "lightning", "timm"} & set(modules)
