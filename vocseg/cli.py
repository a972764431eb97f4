"""The ``vocseg`` command: dispatches to the module of each subcommand.

These modules are imported when they are needed, so that ``--help`` and ``--version`` need not wait for torch.
"""

import atexit
import errno
import gc
import importlib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from vocseg import __version__
from vocseg.device_errors import explain_device_error
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import list_experiments

COMMANDS = {
    "fit": "train a network: vocseg fit --config quickstart",
    "validate": "score a checkpoint on the validation split: vocseg validate --ckpt_path CKPT",
    "test": "score a checkpoint on the test split: vocseg test --ckpt_path CKPT",
    "predict": "write masks of your own images: vocseg predict --ckpt_path CKPT --data.predict_path IMAGES",
    "demo": "segment photographs in the browser: vocseg demo --ckpt_path CKPT",
    "submit": "pack predictions for VOC's evaluation server: vocseg submit --ckpt_path CKPT --data.split test",
    "export": "write a network as ONNX or torch.export: vocseg export --ckpt_path CKPT --format onnx",
    "inspect": "show what a data set holds, before training: vocseg inspect --data.root FOLDER",
    "sweep": "train and compare many runs: vocseg sweep --config mobilenet baseline --seeds 0 1 2",
    "report": "write a page of runs' curves, scores and images: vocseg report RUN [RUN ...]",
    "experiments": "list the packaged experiments",
    "paper": "reproduce the paper's tables: vocseg paper rows, vocseg paper tables",
}
MODULES = {
    "demo": "demo.commands",
    "submit": "submission",
    "export": "export.commands",
    "inspect": "data_report",
    "sweep": "sweep.commands",
    "report": "report.commands",
    "paper": "paper.commands",
}
"""The modules of the commands that have their own, with ``run_command`` and ``make_parser``."""
MOVED = {"rows": "paper rows", "tables": "paper tables"}
"""Commands of vocseg 0.1.0 under other names."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: the words after ``vocseg``; those of this process if None.

    Returns:
        The exit status: 0, or 1 for a mistake in what was given, or 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        print(f"vocseg {__version__}")
        return 0
    try:
        if args[0].startswith("--print_shtab"):
            shell = [*args[0].split("=")[1:], *args[1:], ""][0]
            print(_load("completion").completion_script(shell, COMMANDS, MODULES))
        else:
            _dispatch(args[0], args[1:])
        return 0
    except VocsegError as error:
        # an error in a data loader's worker process arrives with its traceback
        message = str(error).rpartition(f"{VocsegError.__module__}.{VocsegError.__name__}: ")[2]
        print(f"vocseg: {message.strip()}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            print(f"vocseg: {error.filename or 'a file'} cannot be read or written: {error.strerror}", file=sys.stderr)
            return 1
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"vocseg: no room to write {error.filename or 'a file'}: {error.strerror}. Make room, and resume with "
            "vocseg fit ... --ckpt_path last",
            file=sys.stderr,
        )
        return 1
    except (MemoryError, RuntimeError) as error:
        explained = explain_device_error(error, args[0])
        if explained is None:
            raise
        print(f"vocseg: {explained}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vocseg: interrupted", file=sys.stderr)
        return 130


def _dispatch(command: str, args: list[str]) -> None:
    if command in MOVED:
        raise VocsegError(f"vocseg {command} is now vocseg {MOVED[command]}.")
    if command not in COMMANDS:
        raise VocsegError(f"There is no command {command!r}.{nearest(command, COMMANDS)} See vocseg --help.")
    if command == "experiments":
        print("\n".join(_experiments(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)))
    elif command == "predict" and _names_exported_model(args):
        # not _load: of an exported model nothing is imported that takes so long
        importlib.import_module("vocseg.export.prediction").run_command(args)
    elif command in MODULES:
        _load(MODULES[command]).run_command(args)
    else:
        _load("lightning_cli").run([command, *args])


def _names_exported_model(args: Sequence[str]) -> bool:
    """Whether ``--model`` is a file: without a checkpoint, which a config may name, it is no class."""
    names = {word.partition("=")[0] for word in args}
    others = {"--ckpt_path", "--config", "-c"} & names
    if "--model" in names and others and any(word.endswith((".onnx", ".pt2")) for word in args):
        raise VocsegError(f"--model names an exported file, which is complete: leave out {', '.join(sorted(others))}.")
    return "--model" in names and not others


def _load(module: str) -> Any:
    """Imports a module of vocseg, and with it torch and Lightning, without collecting garbage.

    The hundred thousands of objects that these packages make all stay. Looking for garbage among them takes a fifth of
    the time until the first training step.
    """
    name = f"{__package__}.{module}"
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()  # later collections leave them out, too
        atexit.register(gc.unfreeze)  # extension modules report what is not released at exit
        gc.enable()


def _experiments(columns: int | None) -> list[str]:
    """A line per experiment; in a terminal of so many columns, descriptions are wrapped beside short names."""
    listed = list_experiments()
    if columns is None:
        width = max(len(name) for name, _ in listed)
        return [f"{name:<{width}} {text}" for name, text in listed]
    indent = " " * 22
    lines: list[str] = []
    for name, text in listed:
        wrapped = textwrap.wrap(text, max(columns, 60), initial_indent=indent, subsequent_indent=indent)
        if len(name) < len(indent) and wrapped:
            wrapped[0] = name + wrapped[0][len(name) :]
        else:
            wrapped.insert(0, name)
        lines += wrapped
    return lines


def _help() -> str:
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        "usage: vocseg COMMAND [options]\n\nSemantic segmentation on PASCAL VOC.\n\ncommands:\n"
        f"{lines}\n\nvocseg COMMAND --help lists a command's options.\n"
        "vocseg --print_shtab bash (or zsh, tcsh) prints a script that completes them in a shell; it needs shtab."
    )


if __name__ == "__main__":
    sys.exit(main())
