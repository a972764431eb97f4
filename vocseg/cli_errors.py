"""Short explanations of jsonargparse's error messages, with suggestions for misspelt words."""

import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vocseg.backbones import Backbone, MobileNetV2
from vocseg.data.voc import VOCDataModule
from vocseg.decoders import Decoder, SkipDecoder
from vocseg.errors import nearest
from vocseg.experiments import list_experiments
from vocseg.losses import FocalLoss, Loss
from vocseg.schedules import Schedule
from vocseg.task import SegmentationTask

_BASES: dict[str, tuple[type, ...]] = {
    "data": (L.LightningDataModule,),
    "model": (L.LightningModule,),
    "model.backbone": (Backbone,),
    "model.decoder": (Decoder,),
    "model.loss": (Loss, nn.Module),
    "model.loss.losses": (Loss, nn.Module),
    "model.optimizer": (Optimizer,),
    "model.schedule": (Schedule, LRScheduler),
    "trainer.callbacks": (L.Callback,),
}
_NESTED = {
    "model.backbone": MobileNetV2,
    "model.decoder": SkipDecoder,
    "model.loss": FocalLoss,
    "model.optimizer": torch.optim.AdamW,
    "model.schedule": Schedule,
}
"""Components whose settings users look for one level too high: ``--model.lr``."""

_NOT_SETTINGS = ("self", "channels", "strides", "num_classes", "params", "optimizer", "last_epoch")


def explain(message: str, configs: Sequence[str], parser: LightningArgumentParser) -> str:
    """Explains a parsing error in one to six lines.

    Args:
        message: the error message of jsonargparse.
        configs: paths of the config files that were parsed; the one that contains the wrong word is named.
        parser: the parser of the subcommand, for the names of its options.

    Returns:
        What is wrong, where, and the most similar valid word. An unknown kind of message is cut after six lines.
    """
    # of a type with alternatives, each of them repeats the key
    keys = [key for key, _ in groupby(re.findall(r'Parser key "([\w.]+)"', message))]
    key = ".".join(keys).replace(".init_args", "")
    if "NestedArg" in message or message.startswith("unrecognized arguments"):
        configs = []  # the culprit stands on the command line
    word = _found(r"unrecognized arguments: -*([^\s=]+)", message) or _found(
        r"does not accept option '([^']+)'", message
    )
    if word:
        if word in dict(list_experiments()) or word.endswith((".yaml", ".yml")):
            return f"Unexpected argument {word!r}. A config needs its option: --config {word}"
        if Path(word).exists() or word.startswith("/"):
            return f"Unexpected argument {word!r}. A glob pattern needs quotes, or the shell expands it: '*.jpg'"
        return _no_option(word, configs, _options(parser))
    required = _found(r"arguments are required: ([\w., ]+)", message)
    if required:
        prefix = f"--{key}." if key else "--"
        missing = ", ".join(prefix + name.strip() for name in required.split(","))
        if key:
            return f"{key}: a setting is missing: {missing} VALUE"
        return (
            f"Missing options: {missing}. A config contains them, for example --config quickstart "
            "(`vocseg experiments` lists all)."
        )
    ambiguous = _found(r"Give the full class path to avoid ambiguity: ([\w., ]+)\.", message)
    if ambiguous:
        return f"{key}: several classes have this name. Give the full path of one of them: {ambiguous}"
    unknown_class = _found(r"[Ee]xpected a dot import path string: (\S+)", message)
    if unknown_class:
        names = _class_names(key)
        known = f" Known: {', '.join(names)}." if 0 < len(names) <= 12 else ""
        return (
            f"{key}: there is no class {unknown_class!r}{_where(unknown_class, configs)}."
            f"{nearest(unknown_class, names)}{known} A class of your own needs its module: my_module.MyClass."
        )
    setting = _found(r"Option '([^']+)' is not accepted", message)
    # of nested components the error names the inner class after the option, of all others before it
    outer: list[str] = re.findall(r"given class_path '([^']+)'", message)
    inner = _found(r"is not accepted\. Got value: Namespace\(class_path='([^']+)'", message)
    class_path = inner or (outer[-1] if outer else None)
    if setting and class_path:
        names = _settings(class_path)
        if key in ("model", "data"):
            hint = ""
            if setting == "root":
                hint = f" {class_path} has no folder. Your own data: --data VOCDataModule, or --data FolderDataModule."
            options = [f"{key}.{name}" for name in names]
            if key == "model":
                options += [f"{role}.{name}" for role, cls in _NESTED.items() for name in _settings_of(cls)]
            return _no_option(f"{key}.{setting}", configs, options) + hint
        return (
            f"{key}: {class_path} has no setting {setting!r}{_where(setting, configs)}."
            f"{nearest(setting, names)} Its settings: {', '.join(names)}."
        )
    expected = re.findall(r"\n\s*(Expected [^\n]+)", message)
    if expected and key:
        return f"{key}: {_plain(expected[0])}{_where(key.rpartition('.')[2], configs)}"
    imported = _found(
        r"(No module named '[^']+'|[Nn]o attribute '[^']+'|module '[^']+' has no attribute '[^']+')", message
    )
    if imported:
        return f"{key}: {imported}{_where(imported.split(chr(39))[-2], configs)}."
    if "Problems parsing config" in message or "while parsing" in message:
        broken = ", ".join(configs)
        return f"A config is not valid YAML ({broken}): {' '.join(message.split())}"
    return "\n".join([line for line in message.splitlines() if line.strip()][:6])


def _no_option(word: str, configs: Sequence[str], known: Sequence[str]) -> str:
    """An unknown option, with the most similar one, or the one whose last part is the same."""
    option = word.removesuffix(".class_path").split(".init_args")[0]
    same_end = [name for name in known if name.rpartition(".")[2] == option.rpartition(".")[2]]
    suggestion = f" Did you mean {same_end[0]!r}?" if same_end else nearest(option, known)
    return f"There is no option {option!r}{_where(option, configs)}.{suggestion}"


def _found(pattern: str, text: str) -> str | None:
    """The first group of the first match, or None."""
    match = re.search(pattern, text)
    return match.group(1) if match else None


def _where(word: str, configs: Sequence[str]) -> str:
    """`` (in my.yaml)`` for the first config that contains the part of ``word`` after its last dot."""
    last = word.rpartition(".")[2]
    for path in configs:
        if Path(path).is_file() and last in Path(path).read_text(encoding="utf-8", errors="replace"):
            return f" (in {path})"
    return ""


def _options(parser: LightningArgumentParser) -> list[str]:
    """Names of all options, ``trainer.max_epochs``, and of the settings of the data module and the task."""
    leaves = {str(key) for key, _ in parser.get_defaults().items()}
    leaves |= {f"data.{name}" for name in _settings_of(VOCDataModule)}
    leaves |= {f"model.{name}" for name in _settings_of(SegmentationTask)}
    return sorted(leaves)


def _class_names(key: str) -> list[str]:
    """Names of the known classes for an option: all imported subclasses of its base classes."""
    return sorted({cls.__name__ for base in _BASES.get(key, ()) for cls in (base, *_subclasses(base))})


def _subclasses(base: type) -> Iterable[type]:
    subclass: type
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _settings(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return _settings_of(getattr(importlib.import_module(module), name))


def _settings_of(cls: type) -> list[str]:
    """The parameters of a constructor that a user can set, also those that it passes on to its base classes."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]  # of a class, by intent
        plain = [
            parameter
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        names |= {parameter.name: None for parameter in plain}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return [name for name in names if name not in _NOT_SETTINGS]


def _plain(expected: str) -> str:
    """Turns ``Expected a <class 'int'>. Got value: x`` into ``expected int, got x``."""
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.", "")
    expected = re.sub(r"Literal\[(.*?)\]", r"one of \1", expected)
    expected = expected.split(". Got value: Namespace(")[0]
    return expected.replace("Expected a ", "expected ").replace(". Got value: ", ", got ").rstrip(".")
