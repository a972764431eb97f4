"""The ``vocseg`` command: dispatches to the module of each subcommand.

These modules are imported when they are needed, so that ``--help`` and ``--version`` need not wait for torch.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from vocseg import __version__
from vocseg.errors import ArgumentParser, VocsegError, nearest
from vocseg.experiments import list_experiments

COMMANDS = {
    "fit": "train a network: vocseg fit --config quickstart",
    "validate": "score a checkpoint on the validation split: vocseg validate --ckpt_path CKPT",
    "test": "score a checkpoint on the test split: vocseg test --ckpt_path CKPT",
    "predict": "write masks of your own images: vocseg predict --ckpt_path CKPT --data.predict_path IMAGES",
    "submit": "pack predictions for VOC's evaluation server: vocseg submit --ckpt_path CKPT --data.split test",
    "inspect": "show what a data set holds, before training: vocseg inspect --data.root FOLDER",
    "report": "write a page of runs' curves, scores and images: vocseg report RUN [RUN ...]",
    "experiments": "list the packaged experiments",
    "paper": "reproduce the paper's tables: vocseg paper rows, vocseg paper tables",
}
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
        _dispatch(args[0], args[1:])
        return 0
    except VocsegError as error:
        # an error in a data loader's worker process arrives with its traceback
        message = str(error).rpartition(f"{VocsegError.__module__}.{VocsegError.__name__}: ")[2]
        print(f"vocseg: {message.strip()}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"vocseg: no room to write {error.filename or 'a file'}: {error.strerror}. Make room, and resume with "
            "vocseg fit ... --ckpt_path last",
            file=sys.stderr,
        )
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
        listed = list_experiments()
        width = max(len(name) for name, _ in listed)
        for name, line in listed:
            print(f"{name:<{width}} {line}")
    elif command == "report":
        _report(args)
    elif command == "submit":
        from vocseg.submission import run_command as run_submit

        run_submit(args)
    elif command == "inspect":
        from vocseg.data_report import run_command as run_inspect

        run_inspect(args)
    elif command == "paper":
        from vocseg.paper.commands import run_command

        run_command(args)
    else:
        from vocseg.lightning_cli import run

        run([command, *args])


def _report(args: list[str]) -> None:
    parser = ArgumentParser(
        prog="vocseg report",
        description="Writes one self-contained HTML page: scores with intervals, confusion matrix, curves, the best, "
        "the worst and the most surprising test images, and a comparison of several runs. Trains nothing.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or an experiment's name: its newest run"
    )
    parser.add_argument("--to", default=None, help="folder to write (default: report in the first run's folder)")
    given = parser.parse_args(args)
    from vocseg.report import write_report

    page, problems = write_report(given.runs, Path(given.to) if given.to else None)
    print(f"Report  {page}")
    if problems:
        raise VocsegError("\n".join(["Not everything could be reported:", *problems]))


def _help() -> str:
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        "usage: vocseg COMMAND [options]\n\nSemantic segmentation on PASCAL VOC.\n\ncommands:\n"
        f"{lines}\n\nvocseg COMMAND --help lists a command's options."
    )


if __name__ == "__main__":
    sys.exit(main())
