"""The ``vocseg`` command."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vocseg import __version__
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import list_experiments

# Lightning is imported in run(): --help and --version must not wait for it.

COMMANDS = {
    "fit": "train a network: vocseg fit --config quickstart",
    "validate": "score a checkpoint on the validation split: vocseg validate --ckpt_path CKPT",
    "test": "score a checkpoint on the test split: vocseg test --ckpt_path CKPT",
    "predict": "write masks of your own images: vocseg predict --ckpt_path CKPT --data.predict_path IMAGES",
    "rows": "train the paper's rows, one after the other: vocseg rows [ROW ...] [options of fit]",
    "experiments": "list the packaged experiments",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: the words after ``vocseg``; those of this process if None.

    Returns:
        The exit status: 0, 1 for a mistake in what was given, 2 for a mistake in the command itself.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        print(f"vocseg {__version__}")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise VocsegError(f"There is no command {args[0]!r}.{nearest(args[0], COMMANDS)} See vocseg --help.")
        if args[0] == "experiments":
            for name, line in list_experiments():
                print(f"{name:<12} {line}")
            return 0
        if args[0] == "rows":
            return _rows(args[1:])
        from vocseg.run import run

        run(args)
        return 0
    except VocsegError as error:
        print(f"vocseg: {error}", file=sys.stderr)
        return 1


def _rows(args: list[str]) -> int:
    from vocseg.rows import RESULTS, run_rows

    first_option = next((place for place, word in enumerate(args) if word.startswith("-")), len(args))
    names, options = args[:first_option], args[first_option:]
    results = RESULTS
    if "--results" in options[:-1]:
        place = options.index("--results")
        results = Path(options[place + 1])
        del options[place : place + 2]
    failed = run_rows(names, options, results)
    if failed:
        raise VocsegError(f"These rows failed, for the reasons above: {', '.join(failed)}.")
    return 0


def _help() -> str:
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        "usage: vocseg COMMAND [options]\n\nSemantic segmentation on PASCAL VOC.\n\ncommands:\n"
        f"{lines}\n\nvocseg COMMAND --help tells a command's options; --version the version."
    )


if __name__ == "__main__":
    sys.exit(main())
