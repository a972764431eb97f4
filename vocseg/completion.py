"""Shell completion of commands, options and packaged experiments: ``vocseg --print_shtab bash``.

jsonargparse's own ``--print_shtab`` cannot serve here: it follows the settings of every class that a setting may name,
and a network, a loss or a transform may hold others of its kind, without end.
"""

import argparse
import importlib
import re
from collections.abc import Mapping
from typing import Any

from vocseg.cli_help import help_text
from vocseg.errors import VocsegError, check_choice
from vocseg.experiments import list_experiments
from vocseg.export.files import FORMATS

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(shell: str, commands: Mapping[str, str], modules: Mapping[str, str]) -> str:
    """The script that completes ``vocseg`` in a shell.

    Args:
        shell: bash, zsh or tcsh.
        commands: the description of each command, by its name.
        modules: of the commands that do not have Lightning's options; each has a ``make_parser``.

    Raises:
        VocsegError: another shell is given, or shtab is not installed.
    """
    check_choice("--print_shtab", shell, SHELLS)
    try:
        import shtab  # an optional dependency
    except ModuleNotFoundError as error:
        raise VocsegError("vocseg --print_shtab needs shtab: pip install shtab") from error
    parser = argparse.ArgumentParser(prog="vocseg")
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for command, text in commands.items():
        one = subparsers.add_parser(command, help=text.partition(":")[0])
        if command in modules:
            module = importlib.import_module(f"{__package__}.{modules[command]}")
            parts = getattr(module, "COMMANDS", {})  # paper has rows and tables
            if parts:
                below = one.add_subparsers()
                for name, about in parts.items():
                    part = below.add_parser(name, help=about.partition(":")[0])
                    _add_options(part, module.make_parser(name).format_help(), shtab.FILE)
            else:
                _add_options(one, module.make_parser().format_help(), shtab.FILE)
        elif command != "experiments":
            _add_options(one, help_text(command), shtab.FILE)
    return str(shtab.complete(parser, shell))


def _add_options(parser: argparse.ArgumentParser, text: str, files: Any) -> None:
    """Adds the options that a help text lists; after those that take a path, ``files`` completes."""
    lines = re.findall(r"^ +(?:(-\w)(?: [^\s,]+)?, )?(--[\w.]+)(?:, (-\w))?(?=\s|$|,)", text, re.MULTILINE)
    for short, name, alias in dict.fromkeys(lines):
        if name == "--help":
            continue
        action = parser.add_argument(name, *(letter for letter in (short, alias) if letter))
        if name == "--config":
            action.choices = [experiment for experiment, _ in list_experiments()]
        elif name == "--format":
            action.choices = list(FORMATS)
        elif name.endswith(("path", "root", "dir", "init_from", "--to", "--model", "--results", "--check")):
            action.complete = files  # type: ignore[attr-defined]  # shtab's protocol
