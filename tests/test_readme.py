"""The README's commands exist."""

import re
from pathlib import Path

from vocseg.cli import COMMANDS
from vocseg.experiments import list_experiments

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_experiments_it_names_exist():
    names = set(re.findall(r"vocseg fit --config (\w+)", README))
    assert names
    assert names <= {name for name, _ in list_experiments()}


def test_the_commands_it_names_exist():
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    assert set(re.findall(r"^vocseg (\w+)", blocks, re.MULTILINE)) <= set(COMMANDS)


def test_the_files_it_links_to_exist():
    links = re.findall(r"\]\(([\w./]+)", README)
    assert all((Path(__file__).parent.parent / link).exists() for link in links if not link.startswith("http"))
