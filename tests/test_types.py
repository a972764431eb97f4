"""What a type checker sees of vocseg, from a user's script."""

import subprocess
import sys
from pathlib import Path

import pytest

import vocseg

pytest.importorskip("mypy")

SCRIPT = """\
import vocseg
from vocseg import SegmentationTask, SkipDecoder, StridedEncoder

task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["background", "a"])
reveal_type(SegmentationTask)
reveal_type(task.network)
reveal_type(vocseg.Schedule)
reveal_type(vocseg.__version__)
vocseg.NoSuchThing
from vocseg import NeitherThis
"""


def test_the_package_says_that_it_has_types():
    assert Path(vocseg.__file__).with_name("py.typed").is_file()


def test_a_type_checker_sees_the_public_names_as_themselves_and_rejects_others(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # only vocseg is followed: reading torch would take a minute
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-vocseg.*]\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines = [line.removeprefix("script.py:") for line in done.stdout.splitlines()]
    found = {int(line.partition(":")[0]): line.partition(": ")[2] for line in lines if line[0].isdigit()}
    assert set(found) == {5, 6, 7, 8, 9, 10}, done.stdout + done.stderr
    assert "-> vocseg.task.SegmentationTask" in found[5]
    assert "vocseg.network.SegmentationNetwork" in found[6]
    assert "-> vocseg.schedules.Schedule" in found[7]
    assert "str" in found[8]
    assert 'has no attribute "NoSuchThing"' in found[9]
    assert 'has no attribute "NeitherThis"' in found[10]
