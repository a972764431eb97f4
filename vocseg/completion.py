"""Shell completion of commands, options and packaged experiments: ``vocseg --print_shtab bash``.

jsonargparse's own ``--print_shtab`` cannot serve here: it follows the settings of every class that a setting may name,
and a network, a loss or a transform may hold others of its kind, without end.
"""

import argparse
import re
from collections.abc import Mapping

from vocseg.cli_help import help_text
from vocseg.demo.commands import make_parser
from vocseg.errors import VocsegError, check_choice
from vocseg.experiments import list_experiments
from vocseg.export.commands import make_parser as export_parser
from vocseg.export.files import FORMATS

SHELLS = ("bash", "zsh", "tcsh")
WITH_OPTIONS = ("fit", "validate", "test", "predict", "demo", "export")


def completion_script(shell: str, commands: Mapping[str, str]) -> str:
    """The script that completes ``vocseg`` in a shell.

    Args:
        shell: bash, zsh or tcsh.
        commands: the description of each command, by its name.

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
        for names in _options(command) if command in WITH_OPTIONS else ():
            action = one.add_argument(*names)
            if "--config" in names:
                action.choices = [name for name, _ in list_experiments()]
            elif names[0] == "--format":
                action.choices = list(FORMATS)
            elif names[0].endswith(("path", "root", "dir", "init_from", "--to", "--model")):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's protocol
    return str(shtab.complete(parser, shell))


def _options(command: str) -> list[list[str]]:
    """The names of each option in the command's help, the long one first."""
    own = {"demo": make_parser, "export": export_parser}  # the others have Lightning's
    text = own[command]().format_help() if command in own else help_text(command)
    lines = re.findall(r"^ +(--[\w.]+)(?:, (-\w))?(?=\s|$)", text, re.MULTILINE)
    return [[name for name in names if name] for names in dict.fromkeys(lines)]
