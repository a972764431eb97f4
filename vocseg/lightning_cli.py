"""What ``vocseg fit | validate | test | predict`` do: LightningCLI, run folders, and settings from checkpoints."""

import json
import logging
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import vocseg.backbones
import vocseg.decoders  # noqa: F401  (imported so that configs can name our classes without their modules)
from vocseg.callbacks import (
    Charts,
    GracefulShutdown,
    LineProgress,
    MaskPreviews,
    MetricsCSV,
    PredictionWriter,
    ResultTable,
    ScoreFigures,
    StepSeeds,
    StopOnNaN,
    TestMasks,
)
from vocseg.checkpoints import (
    LOGS,
    AtomicCheckpointIO,
    checkpoint_settings,
    last_unfinished,
    run_folder_of,
    saved_configs,
)
from vocseg.cli_errors import explain
from vocseg.components import to_config
from vocseg.data.voc import VOCDataModule
from vocseg.errors import VocsegError
from vocseg.experiments import resolve_config
from vocseg.task import SegmentationTask, default_optimizer


def run(args: Sequence[str], cli_class: "type[VocsegCLI] | None" = None) -> "VocsegCLI":
    """Runs one subcommand.

    Args:
        args: the subcommand and its options.
        cli_class: a VocsegCLI of one's own.

    Returns:
        The command line after its run, with its ``model``, ``datamodule`` and ``trainer``.

    Raises:
        VocsegError: a mistake in the options, configs, data or checkpoint.
    """
    _silence()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a config can name classes of the folder it is used in
    try:
        return (cli_class or VocsegCLI)(
            SegmentationTask,
            VOCDataModule,
            save_config_callback=SaveFitConfig,
            seed_everything_default=0,
            parser_kwargs={
                "exit_on_error": False,
                **{name: {"exit_on_error": False} for name in LightningCLI.subcommands()},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the task describes itself, from Python as well: vocseg.components
            args=list(args),
        )
    except ValueError as error:
        ours = error  # jsonargparse wraps what a component's constructor raises
        while ours is not None and not isinstance(ours, VocsegError):
            ours = ours.__cause__ or ours.__context__
        raise error if ours is None else ours from None
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None


def _silence() -> None:
    """Silences what is neither ours to mend nor the user's to act upon."""
    # advertisements of other products; and that a schedule asked for the length of the run
    needless = ("Tip:", "Loading `train_dataloader` to estimate")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(words in str(record.msg) for words in needless)
    )
    # Lightning calls what torch has deprecated
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # a resumed run goes on in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # scoring a checkpoint needs no checkpoint callback
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    # a frozen backbone stays in eval mode: it is meant to
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    # everything of ours is logged per epoch, whatever the interval
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")


class VocsegCLI(LightningCLI):
    """LightningCLI with checkpoints as a source of settings, run folders of their own names, and short errors."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, the checkpoint and prediction settings, and what flows between the groups."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run's folder (default: the config's)."
        )
        parser.add_argument(
            "--early_stopping",
            type=NonNegativeInt | None,
            default=None,
            help="Stop after this many validations without a better --checkpoint.monitor (default: never).",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(MaskPreviews, "previews")
        parser.add_lightning_class_args(ScoreFigures, "figures")
        parser.set_defaults(
            {
                "model.optimizer": to_config(default_optimizer),
                "checkpoint.monitor": "val/miou",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:
        """Parses; a checkpoint's settings come first, then the configs, then the flags, and the later wins."""
        subcommand, *options = args
        options = [str(option) for option in options]
        configs = _resolve_configs(options)
        checkpoint = _option(options, "--ckpt_path")
        if subcommand == "fit" and checkpoint == "last":
            checkpoint = self._last_unfinished(parser, options, configs)
        if checkpoint is None and subcommand != "fit" and "--help" not in options and "-h" not in options:
            raise VocsegError(f"vocseg {subcommand} needs a checkpoint: --ckpt_path <run folder>/checkpoints/best.ckpt")
        if checkpoint is not None:
            options = ["--config", json.dumps(checkpoint_settings(checkpoint)), *options]
        if subcommand in ("validate", "test"):
            options = ["--verbose", "false", *options]  # ResultTable shows the figures already
        self.config = self._parsed(parser, [subcommand, *options], configs)
        settings = self.config[subcommand]
        self._command = f"vocseg {' '.join(map(shlex.quote, args))}"
        # LightningCLI would let a checkpoint's settings win over the flags if it saw the path now
        self._checkpoint = settings.pop("ckpt_path", None)
        run_folder = run_folder_of(checkpoint) if checkpoint else None
        if settings.name is None:
            settings.name = _name(configs) or (run_folder.parent.name if run_folder else subcommand)
        # a fit goes on in the folder whose last checkpoint it starts from; from any other it begins a new one
        resumes = run_folder is not None and (subcommand != "fit" or Path(checkpoint).name == "last.ckpt")
        self._run_folder = run_folder if resumes else None

    def _parsed(self, parser: LightningArgumentParser, words: list[str], configs: list[str]) -> Any:
        try:
            return parser.parse_args(words)
        except ArgumentError as error:
            raise VocsegError(explain(error.message, configs, self._parser(words[0]))) from error

    def _last_unfinished(self, parser: LightningArgumentParser, options: list[str], configs: list[str]) -> str:
        """Puts the checkpoint that ``--ckpt_path last`` means into ``options``."""
        place = next(place for place, option in enumerate(options) if option.startswith("--ckpt_path"))
        width = 1 if "=" in options[place] else 2
        asked = self._parsed(parser, ["fit", *options[:place], *options[place + width :]], configs)["fit"]
        logs = Path(asked.trainer.default_root_dir or ".") / LOGS
        name = asked.name or _name(configs) or "fit"
        found = str(last_unfinished(logs, name, asked.trainer.max_epochs, asked.trainer.max_steps))
        options[place : place + width] = ["--ckpt_path", found]
        return found

    def before_instantiate_classes(self) -> None:
        """Gives the checkpoint's path back; settles what depends on other settings."""
        settings = self.config[self.subcommand]
        settings.ckpt_path = self._checkpoint
        settings.weights_only = True  # Lightning's default would unpickle what the file holds
        if not isinstance(settings.seed_everything, bool):
            settings.data.seed = settings.seed_everything  # it may have been chosen only now
        if settings.trainer.limit_val_batches == 0:  # without validation there is no best checkpoint
            settings.checkpoint.monitor, settings.checkpoint.save_top_k = None, 0

    def after_instantiate_classes(self) -> None:
        """Records the config's description of the components: it knows those of strangers' classes, too."""
        # by name also where they were left to the data, or they would seem changed in a run that is resumed
        self.config[self.subcommand].data.class_names = list(self.datamodule.class_names)
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))[self.subcommand]["model"]
        self.model.save_hyperparameters({**dumped, "class_names": self.model.class_names})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes the trainer, with our loggers and callbacks unless the config has its own."""
        settings = self._get(self.config_init, "trainer")
        callbacks = [*_listed(settings.callbacks), ResultTable(), TestMasks()]
        if settings.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False  # in a file or a pipe it would be a heap of control characters
            callbacks.append(LineProgress())
        self._parser(self.subcommand).callback_keys.remove("checkpoint")
        if settings.logger is None or settings.logger is True:
            # absolute, for a resumed run must find its checkpoints under the names that it gave them
            kwargs["logger"] = self._logger((Path(settings.default_root_dir or ".") / LOGS).absolute())
            if self.subcommand == "validate":
                # TensorBoard drops the points of a curve that lie after a step which comes once more: val/loss of the
                # best epoch, logged again, would hide those of all later epochs
                kwargs["logger"] = False
            if not settings.fast_dev_run and self.subcommand == "fit":
                callbacks += [LearningRateMonitor("epoch"), MetricsCSV(), Charts()]
        if self.subcommand == "fit":
            callbacks += self._fit_callbacks()
            plugins = _listed(settings.plugins)
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        else:
            kwargs["enable_checkpointing"] = False
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise VocsegError(f"--trainer: {' '.join(str(error).split())}") from error

    def _fit_callbacks(self) -> list[L.Callback]:
        """What guards a run, early stopping if wanted, the best checkpoint, and after it (it knows of it) the last."""
        best = self._get(self.config_init, "checkpoint")
        patience = self._get(self.config, "early_stopping")
        stopping = [] if patience is None else [EarlyStopping(best.monitor, mode=best.mode, patience=int(patience))]
        # save_last of the best one would write only when there is a new best
        last = ModelCheckpoint(
            best.dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        guards = [StepSeeds(self.datamodule.seed), StopOnNaN(), GracefulShutdown(self._to_go_on())]
        return [*guards, *stopping, best, last]

    def _to_go_on(self) -> str:
        """The command of this fit, from its last checkpoint."""
        if "--ckpt_path" in self._command:
            return self._command
        return f"{self._command} --ckpt_path last"

    def after_fit(self) -> None:
        """Says where things are and what to paste next."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero or not self.trainer.loggers:
            return
        checkpoints, last = self.trainer.checkpoint_callbacks
        best = _shown(checkpoints.best_model_path or last.best_model_path)
        score = checkpoints.best_model_score
        scored = "not known: nothing was validated" if score is None else f"{checkpoints.monitor} {score:.4f}"
        photograph = _shown(self.datamodule.datasets["val"].samples[0].image)
        logs = _shown(self.trainer.loggers[0].save_dir)
        print(
            f"\nRun folder  {_shown(self.trainer.loggers[0].log_dir)}\n"
            f"Best        {scored}\n"
            "Next\n"
            f"  vocseg test --ckpt_path {best}\n"
            f"  vocseg predict --ckpt_path {best} --data.predict_path {photograph}\n"
            f"  tensorboard --logdir {logs}"
        )

    def after_predict(self) -> None:
        """Says where the masks are."""
        writer = next(callback for callback in self.trainer.callbacks if isinstance(callback, PredictionWriter))
        if not self.trainer.is_global_zero:
            return
        folder = _shown(writer.folder)
        print(f"\nMasks written to {folder}: {len(writer.written)}")
        if writer.contact_sheet and writer.written:
            print(f"All of them  {folder}/index.html")
        if writer.unreadable:
            raise VocsegError("\n".join([f"Not predicted: {len(writer.unreadable)}", *writer.unreadable]))

    def _logger(self, logs: Path) -> TensorBoardLogger:
        folder = self._run_folder
        if folder is None:
            return TensorBoardLogger(logs, name=self._get(self.config, "name"), default_hp_metric=False)
        # test, predict and a resumed fit add to the run of their checkpoint
        return TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
        )


class SaveFitConfig(SaveConfigCallback):
    """Saves the config of a fit; a later test in the same folder must not overwrite it."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves the config when a fit begins: ``config.yaml``; what a resumed one changes in ``config_1.yaml``, ..."""
        if stage != "fit" or not trainer.loggers:  # without a logger there is no run folder
            return
        saved = trainer.strategy.broadcast(saved_configs(Path(trainer.log_dir or ".")))
        if saved:
            before = _flat(yaml.safe_load(saved[-1].read_text(encoding="utf-8")))
            now = _flat(yaml.safe_load(self.parser.dump(self.config, skip_unset=False)))
            names = [name for name in {**before, **now} if before.get(name) != now.get(name) and name != "ckpt_path"]
            if not names:
                return
            self.config_filename = f"config_{len(saved)}.yaml"
            if trainer.is_global_zero:
                changes = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
                sys.stderr.write(f"Settings that differ from before, kept in {self.config_filename}: {changes}\n")
        super().setup(trainer, pl_module, stage)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    parts = (_flat(value, f"{prefix}{name}.") for name, value in settings.items())
    return {name: value for part in parts for name, value in part.items()}


def _resolve_configs(options: list[str]) -> list[str]:
    """Replaces packaged experiments' names in ``options`` by their paths; returns the configs."""
    configs = []
    for position, option in enumerate(options):
        if option in ("--config", "-c") and position + 1 < len(options):
            options[position + 1] = resolve_config(options[position + 1])
            configs.append(options[position + 1])
        elif option.startswith("--config="):
            configs.append(resolve_config(option.removeprefix("--config=")))
            options[position] = f"--config={configs[-1]}"
    return configs


def _option(options: Sequence[str], name: str) -> str | None:
    for position, option in enumerate(options):
        if option == name and position + 1 < len(options):
            return options[position + 1]
        if option.startswith(f"{name}="):
            return option.removeprefix(f"{name}=")
    return None


def _listed(setting: Any) -> list[Any]:
    """What the trainer takes as None, as one thing, or as a list of them."""
    return list(setting) if isinstance(setting, list | tuple) else [] if setting is None else [setting]


def _name(configs: Sequence[str]) -> str | None:
    return Path(configs[0]).stem if configs else None


def _shown(path: str | Path) -> str:
    """The path as a user would type it here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
