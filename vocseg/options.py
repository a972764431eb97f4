"""Options of the command line around jsonargparse: packaged configs, what must be known before parsing, errors."""

import argparse
import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from vocseg.errors import VocsegError
from vocseg.experiments import resolve_config


class ConfigFile(ActionConfigFile):
    """``--config``: a file, or the name of a packaged experiment."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Applies a config at its position among the options."""
        is_text = isinstance(values, str) and not values.lstrip().startswith("{")
        super().__call__(parser, cfg, resolve_config(values) if is_text else values, option_string)


def scan(options: Sequence[str]) -> argparse.Namespace:
    """What must be known before the real parser runs: the checkpoint's settings are its defaults.

    As there, the last one wins, of flags and of configs.

    Returns:
        ``configs`` (paths), ``ckpt_path`` and ``data_class`` (of configs), ``data`` and ``root`` (of flags).
    """

    class ReadConfig(argparse.Action):
        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
            if values.lstrip().startswith("{"):
                return
            namespace.configs = [*namespace.configs, resolve_config(values)]
            try:
                content = yaml.safe_load(Path(namespace.configs[-1]).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                return  # for the real parser to report
            if isinstance(content, dict) and "ckpt_path" in content:
                namespace.ckpt_path = content["ckpt_path"]
            if isinstance(content, dict) and isinstance(content.get("data"), dict):
                namespace.data_class = content["data"].get("class_path", namespace.data_class)

    scanner = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scanner.set_defaults(data_class=None)
    scanner.add_argument("-c", "--config", dest="configs", action=ReadConfig, default=[])
    scanner.add_argument("--ckpt_path")
    scanner.add_argument("--data")
    scanner.add_argument("--data.root", dest="root")
    try:
        found, _ = scanner.parse_known_args(list(options))
    except ArgumentError as error:
        raise VocsegError(f"{error.argument_name}: {error.message}") from error
    found.ckpt_path = None if found.ckpt_path in (None, "null") else str(found.ckpt_path)
    return found


def with_nested_nulls(options: Sequence[str]) -> list[str]:
    """``--model.backbone.weights null`` as a config: jsonargparse 4.53 makes the word "None" of a null so deep."""
    words: list[str] = []
    for option in options:
        name, equals, value = option.partition("=")
        if not equals and words and words[-1].startswith("--"):  # perhaps the value of the word before
            name, value = words[-1], option
        if name.startswith("--") and name.count(".") > 1 and value.lower() in ("null", "~"):
            words = words if equals else words[:-1]
            words += ["--config", json.dumps({name.removeprefix("--"): None})]
        else:
            words.append(option)
    return words


def with_voc_for_a_root(options: list[str], found: argparse.Namespace, data_class: str | None) -> list[str]:
    """``--data.root`` alone means VOC, also where the config is of the synthetic images, which have no root."""
    names = [word.partition("=")[0] for word in options]
    if not found.root or str(data_class).rpartition(".")[2] != "SyntheticDataModule":
        return options
    index = names.index("--data.root")
    return options if "--data" in names[:index] else [*options[:index], "--data", "VOCDataModule", *options[index:]]


def unwrap(error: BaseException) -> Exception:
    """The error that a component's constructor raised, below those that jsonargparse wrapped it in.

    Returns:
        A VocsegError, also for a package that is missing, or ``error`` itself where none of these is the cause.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, VocsegError | ModuleNotFoundError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ModuleNotFoundError):  # of a logger, a callback or a user's own module
        return VocsegError(
            f"{' '.join(str(cause).split())}. It is not part of vocseg: install it, or leave out what needs it "
            "(--trainer.logger, --trainer.callbacks)."
        )
    return cause or error  # type: ignore[return-value]  # callers catch exceptions alone
