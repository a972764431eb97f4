"""``vocseg fit --help``: one line per option. jsonargparse's own text has thousands, with every nn.Module in memory."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from docstring_parser import parse as parse_docstring
from lightning.pytorch.callbacks import ModelCheckpoint

from vocseg import backbones, decoders, losses
from vocseg.callbacks import MaskPreviews, PredictionWriter, ScoreFigures
from vocseg.data.base import SegmentationDataModule
from vocseg.inference import Inference
from vocseg.schedules import Schedule
from vocseg.task import SegmentationTask
from vocseg.whole_network import WholeNetwork

WIDTH = 120
COMPONENTS: dict[str, Sequence[type]] = {
    "backbone": [getattr(backbones, name) for name in backbones.__all__ if name != "Backbone"] + [WholeNetwork],
    "decoder": [getattr(decoders, name) for name in decoders.__all__ if name != "Decoder"],
    "loss": [
        value
        for name in losses.__all__
        if isinstance(value := getattr(losses, name), type) and value is not losses.Loss
    ],
    "schedule": [Schedule],
}


def help_text(subcommand: str) -> str:
    """The help of ``fit``, ``validate``, ``test`` or ``predict``."""
    lines = [
        f"usage: vocseg {subcommand} [--config CONFIG ...] [options]",
        "",
        "Later configs and flags override earlier ones, and all of them the settings of --ckpt_path.",
        *_group("General"),
        *_option("--config, -c", "a config file, or the name of a packaged experiment (vocseg experiments)"),
        *_option("--print_config", "print all settings and exit"),
        *_option("--ckpt_path", _CHECKPOINT[subcommand != "fit"]),
        *(
            _option(
                "--model", "instead of --ckpt_path: a file that vocseg export wrote; see vocseg predict --model FILE -h"
            )
            if subcommand == "predict"
            else []
        ),
        *_option("--init_from", "fit: start a new training from the weights of a run, a checkpoint or a state dict"),
        *_option("--name", "name of the run's folder; by default the names of the configs, joined by a hyphen"),
        *_option("--seed_everything", "seed of all random draws (default: 0)"),
        *_option("--early_stopping", "stop after this many validations without a better --checkpoint.monitor"),
        *_option("--ema", "average the weights with this decay, 0.99 for one: for scores and checkpoints"),
        *_option("--compile", "true: compile network and loss for training, with torch.compile"),
        *_option("--cache_features", "gigabytes of memory for the features of a frozen backbone"),
        *(_option("--scores", _SCORES) if subcommand in ("validate", "test") else ()),
        *_group("Model: --model.NAME VALUE, of SegmentationTask, or --model my_module.MyTask"),
    ]
    for name, text in _settings(SegmentationTask):
        if name != "class_names":  # comes from the data
            lines += _option(f"--model.{name}", text)
    lines += _group(
        "Components: --model.backbone ResNet --model.backbone.depth 50; your own by import path, my_module.Net"
    )
    for role, classes in COMPONENTS.items():
        for cls in classes:
            names = [name for name, _ in _settings(cls) if name not in ("channels", "strides", "num_classes")]
            lines += _option(f"{role} {cls.__name__}", f"{_summary(cls)} Settings: {', '.join(names) or 'none'}.")
    lines += _option("optimizer, schedule", "also any class of torch.optim and torch.optim.lr_scheduler, by its name")
    lines += _group("Data: --data.NAME VALUE, of VOCDataModule; --data FolderDataModule, or --data my_module.MyData")
    common = dict(_settings(SegmentationDataModule))
    for cls in SegmentationDataModule.__subclasses__():
        if cls.__module__.startswith("vocseg."):
            lines += [
                "",
                *textwrap.wrap(
                    f"{cls.__name__}: {_summary(cls)}", WIDTH - 2, initial_indent="  ", subsequent_indent="  "
                ),
            ]
            for name, text in _settings(cls):
                lines += _option(f"--data.{name}", text)
    lines += ["", "  All of them:"]
    for name, text in common.items():
        if name != "class_names":
            lines += _option(f"--data.{name}", text)
    for group, cls in _GROUPS.items():
        lines += ["", f"--{group}.NAME VALUE: {_summary(cls)}"]
        for name, text in _settings(cls):
            lines += _option(f"--{group}.{name}", text)
    lines += _group("Trainer: --trainer.NAME VALUE, of Lightning's Trainer")
    for name, text in _settings(L.Trainer):
        lines += _option(f"--trainer.{name}", text)
    return "\n".join(lines)


_CHECKPOINT = (
    "resume from this checkpoint; `last`: the newest unfinished run's, `auto`: the same, or a new run",
    "the checkpoint, which holds all settings, or a run's folder or name: its best checkpoint",
)
_SCORES = (
    'more scores, "[boundary, calibration]": boundary IoU; calibration error and reliability curve (default: none; not '
    "in the validation of fit)"
)
_GROUPS: dict[str, type] = {
    "inference": Inference,
    "checkpoint": ModelCheckpoint,
    "predictions": PredictionWriter,
    "previews": MaskPreviews,
    "figures": ScoreFigures,
}


def _settings(cls: Any) -> Iterator[tuple[str, str]]:
    """Name, and first sentence of the description, of each parameter of a constructor."""
    documented: dict[str, str] = {}
    for text in (cls.__doc__, cls.__init__.__doc__):
        documented |= {each.arg_name: each.description or "" for each in parse_docstring(text or "").params}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield name, _first_sentence(documented.get(name, ""))


def _summary(cls: Any) -> str:
    return _first_sentence(parse_docstring(cls.__doc__ or "").short_description or "")


def _first_sentence(text: str) -> str:
    words = " ".join(re.sub(r":\w+:`[\w.]*?(\w+)`", r"\1", text).replace("``", "").split())
    sentence = re.split(r"(?<!Fig)(?<! al)\. ", words)[0].rstrip(".:")
    return textwrap.shorten(f"{sentence}.", 180, placeholder=" ...") if sentence else ""


def _group(title: str) -> list[str]:
    return ["", f"{title}:"]


def _option(name: str, text: str) -> list[str]:
    start = f"  {name:<36} "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start.rstrip()]
