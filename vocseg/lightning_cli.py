"""``vocseg fit | validate | test | predict``: LightningCLI with vocseg's defaults, run folders and checkpoints."""

import argparse
import atexit
import glob
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
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import distributed

import vocseg.backbones
import vocseg.data.folder
import vocseg.decoders  # noqa: F401  (imported so that configs can name our classes without their modules)
from vocseg.callbacks import (
    CachedFeatures,
    Charts,
    CompiledTraining,
    DivideCores,
    EpochBar,
    GracefulShutdown,
    LineProgress,
    MaskPreviews,
    MetricsCSV,
    MoreScores,
    PartsSummary,
    PredictionWriter,
    ResultTable,
    ScoreFigures,
    SplitLists,
    StepSeeds,
    StopOnNaN,
    TestMasks,
    WeightEMA,
)
from vocseg.callbacks.fit_config import SaveFitConfig
from vocseg.checkpoints import AtomicCheckpointIO, checkpoint_settings, has_averages, last_checkpoint, run_folder_of
from vocseg.cli_errors import explain
from vocseg.cli_help import help_text
from vocseg.components import class_path_of, to_config
from vocseg.data.synthetic import SyntheticDataModule
from vocseg.data.voc import VOCDataModule
from vocseg.errors import VocsegError, nearest
from vocseg.inference import Inference
from vocseg.initialization import checkpoint_of
from vocseg.options import ConfigFile, scan, unwrap, with_nested_nulls, with_voc_for_a_root
from vocseg.run_folder import LOGS
from vocseg.task import SegmentationTask, default_optimizer

AUTO = "auto"
"""The default of ``--checkpoint.mode``: min for losses, max for all other scores."""
NEWEST = ("last", "auto")
"""Words that ``fit`` takes for a checkpoint: the newest unfinished run's, and the same or a new run."""


def run(args: Sequence[str], cli_class: "type[VocsegCLI] | None" = None) -> "VocsegCLI":
    """Runs one subcommand.

    Args:
        args: the subcommand and its options.
        cli_class: a subclass of VocsegCLI to use instead.

    Returns:
        The command line after its run, with its ``model``, ``datamodule`` and ``trainer``.

    Raises:
        VocsegError: a mistake in the options, configs, data or checkpoint.
    """
    _silence()
    atexit.register(_end_process_group)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a config can name classes in the current folder

    class OneCommand(cli_class or VocsegCLI):  # type: ignore[misc]  # a base that is known only here
        """Builds the parser of this subcommand alone."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {args[0]: LightningCLI.subcommands()[args[0]]}

    try:
        return OneCommand(
            save_config_callback=SaveFitConfig,
            seed_everything_default=0,
            parser_kwargs={
                # an abbreviated option would not be seen by scan()
                **{"exit_on_error": False, "allow_abbrev": False},
                args[0]: {"exit_on_error": False, "allow_abbrev": False},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the task describes itself, from Python as well: vocseg.components
            args=list(args),
        )
    except (ValueError, ModuleNotFoundError) as error:
        cause = unwrap(error)
        if cause is error:
            raise
        raise cause from None
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None


def _end_process_group() -> None:
    """Ends the threads of torch's gloo backend: at exit, those still running can abort the process."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _silence() -> None:
    """Silences messages that neither vocseg nor its user can act upon."""
    # advertisements of other products; that a schedule asked for the length of the run; what was asked for
    needless = (
        *("Tip:", "Loading `train_dataloader` to estimate", "Trainer already configured with model summary"),
        "`Trainer.fit` stopped: `max_epochs",
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(words in str(record.msg) for words in needless)
    )
    # Lightning calls what torch has deprecated
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # a resumed run continues in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # scoring a checkpoint needs no checkpoint callback
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    # DivideCores says how many there are, and the network is the bottleneck
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # a frozen backbone is meant to stay in eval mode
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    # all that vocseg logs is logged per epoch, whatever the interval
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")


class VocsegCLI(LightningCLI):
    """LightningCLI that also takes settings from checkpoints, names run folders, and shortens errors.

    Settings enter in this order, and the later wins: the checkpoint's, then configs and flags as they stand on the
    command line.
    """

    best: ModelCheckpoint
    last: ModelCheckpoint
    parsers: list[LightningArgumentParser]

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` knows the packaged experiments."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={L.__version__}"])
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="A config file, or a packaged experiment's name.")
        self.parsers = [*getattr(self, "parsers", []), parser]  # the main one, then one per subcommand
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, the settings of inference, checkpoints and pictures, and the links between groups."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run's folder (default: the names of the configs, joined by a hyphen).",
        )
        parser.add_argument(
            "--early_stopping",
            type=NonNegativeInt | None,
            default=None,
            help="Stop after this many validations without a better --checkpoint.monitor (default: never).",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Start a new training from the weights of a run, a checkpoint or a state dict, as far as they fit.",
        )
        parser.add_argument(
            "--ema",
            type=float | None,
            default=None,
            help="Average the weights over the steps with this decay, 0.99 for one: validation scores the average, and "
            "checkpoints hold it (default: no average).",
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="Compile network and loss for training, with torch.compile."
        )
        parser.add_argument(
            "--cache_features",
            type=float | None,
            default=None,
            help="Keep the features of a frozen backbone in memory, at most so many gigabytes (default: none).",
        )
        if {"validate", "test"} & set(self.subcommands()):  # one at a time, see run()
            parser.add_argument(
                "--scores",
                type=list[str] | str,
                default=[],
                help="Further scores of validate and test: boundary (boundary IoU), calibration (its error and curve).",
            )
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.add_class_arguments(Inference, "inference")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(MaskPreviews, "previews")
        parser.add_lightning_class_args(ScoreFigures, "figures")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/miou",
                "checkpoint.mode": AUTO,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        # a user's own classes need not have these settings
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.link_arguments("data.class_names", "model.init_args.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line, with the settings of the checkpoint that it names as defaults."""
        subcommand, *options = (str(word) for word in args)
        if {"-h", "--help"} & set(options):
            print(help_text(subcommand))
            raise SystemExit(0)
        options = with_nested_nulls(options)
        found = scan(options)
        configs = found.configs
        self._resume_command = f"vocseg {shlex.join(map(str, args))}"
        if found.ckpt_path not in NEWEST:
            self._resume_command += " --ckpt_path last"
        options = with_voc_for_a_root(options, found, found.data_class)
        checkpoint = self._checkpoint_path(parser, subcommand, options, found)
        saved = {} if checkpoint is None else checkpoint_settings(checkpoint)
        options = with_voc_for_a_root(options, found, found.data_class or saved.get("data", {}).get("class_path"))
        defaults = ["--config", json.dumps(saved)] if saved else []
        if subcommand in ("validate", "test"):
            defaults += ["--verbose", "false"]  # ResultTable prints the scores already
        self.config = self._parse(parser, [subcommand, *defaults, *options], configs)
        settings = self.config[subcommand]
        # LightningCLI would let a checkpoint's settings win over the flags if it saw the path now
        settings.pop("ckpt_path", None)
        self._checkpoint = checkpoint
        run_folder = run_folder_of(checkpoint) if checkpoint else None
        if settings.name is None:
            settings.name = _run_name(settings, configs) or (run_folder.path.parent.name if run_folder else subcommand)
        # a fit continues in the run folder whose last checkpoint it starts from; with any other it starts a new run
        continues = run_folder is not None and (subcommand != "fit" or Path(str(checkpoint)).name == "last.ckpt")
        self._run_folder = run_folder if continues else None

    def _checkpoint_path(
        self, parser: LightningArgumentParser, subcommand: str, options: list[str], found: argparse.Namespace
    ) -> str | None:
        """The path of the checkpoint to start from, if any; resolves ``last`` and ``auto``."""
        if subcommand != "fit" and found.ckpt_path is None:
            raise VocsegError(f"vocseg {subcommand} needs a checkpoint: --ckpt_path <run folder>/checkpoints/best.ckpt")
        if subcommand != "fit" and found.ckpt_path not in NEWEST and Path(found.ckpt_path).suffix != ".ckpt":
            return str(checkpoint_of(found.ckpt_path))  # a run's name or folder stands for its best checkpoint
        if subcommand != "fit" or found.ckpt_path not in NEWEST:
            return found.ckpt_path
        asked = self._parse(parser, ["fit", *options], found.configs)["fit"]
        name = _run_name(asked, found.configs) or "fit"
        limits = (asked.trainer.max_epochs, asked.trainer.max_steps)
        last = last_checkpoint(*_last_checkpoints(asked, name), name, *limits, finished_too=found.ckpt_path == "auto")
        if last is None:
            return None
        sys.stderr.write(f"Resuming from {_shown(last)}\n")
        return str(last)

    def _parse(self, parser: LightningArgumentParser, words: list[str], configs: list[str]) -> Any:
        # a config before all others: defaults of the parser would also replace those of another class that is chosen
        usual = {
            "model": {
                "class_path": class_path_of(SegmentationTask),
                "init_args": {"optimizer": to_config(default_optimizer)},
            },
            "data": {"class_path": class_path_of(VOCDataModule)},
        }
        try:
            return parser.parse_args([words[0], "--config", json.dumps(usual), *words[1:]])
        except ArgumentError as error:
            options = dict(zip(self.subcommands(), self.parsers[1:], strict=True))[words[0]]
            raise VocsegError(explain(error.message, configs, options)) from error

    def before_instantiate_classes(self) -> None:
        """Sets the checkpoint's path again, and what depends on other settings."""
        settings = self._settings()
        settings.ckpt_path = self._checkpoint
        settings.weights_only = True  # Lightning's default would unpickle what the file holds
        if self.subcommand == "predict":
            settings.return_predictions = False  # they are in files; kept, they would fill the memory
        if not isinstance(settings.seed_everything, bool) and "seed" in settings.data.get("init_args", {}):
            settings.data.init_args.seed = settings.seed_everything  # a random one is chosen only now
        if settings.trainer.limit_val_batches == 0:  # without validation there is no best checkpoint
            settings.checkpoint.monitor, settings.checkpoint.save_top_k = None, 0
        self._mode = settings.checkpoint.mode
        monitor = str(settings.checkpoint.monitor)
        settings.checkpoint.mode = _mode_of(monitor, self._mode)
        if monitor.startswith("train/"):  # known at the end of the training epoch, after the validation
            settings.checkpoint.save_on_train_epoch_end = True

    def after_instantiate_classes(self) -> None:
        """Passes on the settings of inference, and records the components as the config describes them.

        The config also knows those of a user's own classes.
        """
        settings = self._settings()
        settings.checkpoint.mode = self._mode  # a saved config must serve another monitor, too
        if "class_names" in settings.data.get("init_args", {}):
            # by name also where the data module chose them, or they would seem changed when the run is resumed
            settings.data.init_args.class_names = list(self.datamodule.class_names)
        inference: Inference = self.config_init[self.subcommand]["inference"]
        if isinstance(self.model, SegmentationTask):
            self.model.inference = inference
        elif not inference.is_plain:
            raise VocsegError(
                f"--inference is of SegmentationTask: {type(self.model).__name__} does not derive from it."
            )
        if isinstance(self.model, SegmentationTask):
            dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))[self.subcommand]["model"]
            self.model.save_hyperparameters({**dumped["init_args"], "class_names": self.model.class_names})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer, with vocseg's loggers and callbacks unless the config has its own."""
        init = self.config_init[self.subcommand]
        settings = init["trainer"]
        best: ModelCheckpoint = init["checkpoint"]
        callbacks = [
            *_listed(settings.callbacks),
            *([MoreScores(init["scores"])] if init.get("scores") else []),  # before those that read the result
            ResultTable(str(best.monitor), best.mode),
            TestMasks(),
            DivideCores(),
        ]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if settings.enable_progress_bar is None and not sys.stdout.isatty() and not has_bar:
            kwargs["enable_progress_bar"] = False  # a file or a pipe would fill with control characters
            callbacks.append(LineProgress())
        elif settings.enable_progress_bar is not False and not has_bar:
            callbacks.insert(0, EpochBar())  # it ends before the others print their results
        has_summary = any(isinstance(callback, ModelSummary) for callback in callbacks)
        if self.subcommand == "fit" and settings.enable_model_summary is not False and not has_summary:
            callbacks.append(PartsSummary())
        if settings.logger is None or settings.logger is True:
            # absolute: a resumed run must find its checkpoints under the names that it gave them
            kwargs["logger"] = self._logger((Path(settings.default_root_dir or ".") / LOGS).absolute())
            if self.subcommand == "validate":
                # TensorBoard drops the points of a curve that lie after a repeated step: val/loss of the best epoch,
                # logged again, would hide those of all later epochs
                kwargs["logger"] = False
            if not settings.fast_dev_run and self.subcommand == "fit":
                callbacks += [LearningRateMonitor("epoch"), MetricsCSV(), SplitLists(), Charts()]
        if self.subcommand == "fit":
            callbacks += self._fit_callbacks(best, init["early_stopping"], init["ema"])
            plugins = _listed(settings.plugins)
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        else:
            kwargs["enable_checkpointing"] = False
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise VocsegError(f"--trainer: {' '.join(str(error).split())}") from error

    def _fit_callbacks(self, best: ModelCheckpoint, patience: int | None, ema: float | None) -> list[L.Callback]:
        """Averages and early stopping if wanted, guards, the best checkpoint, then (with its score) the last."""
        # save_last of the best one would write only when there is a new best
        last = LastCheckpoint(best)
        self.best, self.last = best, last
        if best.save_top_k not in (0, 1) and "{" not in str(best.filename):
            raise VocsegError(
                f"--checkpoint.save_top_k {best.save_top_k}: several checkpoints need names that differ, for example "
                "--checkpoint.filename 'best-{epoch}'."
            )
        self._refuse_checkpoints_of_others(best.dirpath)
        known = getattr(self.model, "monitorable", None)  # a user's own task and callbacks may log anything
        if known and best.monitor and best.monitor not in known and not _listed(self._settings().trainer.callbacks):
            raise VocsegError(
                f"--checkpoint.monitor: nothing logs {best.monitor!r}.{nearest(best.monitor, known)} Logged are "
                f"{', '.join(name for name in known if '/iou/' not in name)}, and val/iou/<class>."
            )
        guards: list[L.Callback] = [
            *self._averages(ema, best),  # first: a checkpoint in the middle of an epoch has the last step's average
            StepSeeds(int(self._settings().seed_everything)),
            StopOnNaN(last),
            GracefulShutdown(last, self._resume_command, self._settings().name),
        ]
        if self._settings().compile:
            guards.append(CompiledTraining())
        if self._settings().cache_features is not None:
            guards.append(CachedFeatures(self._settings().cache_features))
        if patience is not None:
            of_training = str(best.monitor).startswith("train/")
            guards.append(
                EarlyStopping(
                    str(best.monitor), mode=best.mode, patience=int(patience), check_on_train_epoch_end=of_training
                )
            )
        return [*guards, best, last]

    def _averages(self, ema: float | None, best: ModelCheckpoint) -> list[L.Callback]:
        """The callback that averages the weights, if wanted.

        Raises:
            VocsegError: the checkpoint to resume from has averaged weights, and no callback would continue them; or
                the best checkpoint would not have them.
        """
        if ema is not None:
            if best.save_weights_only:
                raise VocsegError("--ema: --checkpoint.save_weights_only true would save no average. Give one of them.")
            return [WeightEMA(ema)]
        own = any(
            isinstance(callback, WeightAveraging)
            for callback in _listed(self.config_init[self.subcommand].trainer.callbacks)
        )
        if self._checkpoint is not None and not own and has_averages(self._checkpoint):
            raise VocsegError(
                f"The weights in {_shown(self._checkpoint)} are averages: resume it with --ema as before."
            )
        return []

    def _refuse_checkpoints_of_others(self, dirpath: Any) -> None:
        """Refuses a ``--checkpoint.dirpath`` with checkpoints of another run, which this one would replace."""
        if dirpath is None or self._settings().trainer.fast_dev_run:
            return
        others = sorted(Path(dirpath).glob("*.ckpt"))
        if others and (self._checkpoint is None or Path(self._checkpoint).resolve().parent != Path(dirpath).resolve()):
            raise VocsegError(
                f"--checkpoint.dirpath: {_shown(others[0])} is of another run, and would be replaced. Name another "
                "folder, or resume that run with --ckpt_path last"
            )

    def before_fit(self) -> None:
        """Takes the weights of ``--init_from``; a resumed run has its own."""
        source = self._settings().init_from
        if source is None or self._checkpoint is not None:
            return
        if not isinstance(self.model, SegmentationTask):
            raise VocsegError(f"--init_from needs a SegmentationTask; {type(self.model).__name__} is none.")
        self.model.init_from(source)

    def after_fit(self) -> None:
        """Prints where the run's files are and what to paste next."""
        if self._settings().trainer.fast_dev_run or not self.trainer.is_global_zero or not self.trainer.loggers:
            return
        best = _shown(self.best.best_model_path or self.last.best_model_path)
        score = self.best.best_model_score
        scored = "not known: nothing was validated" if score is None else f"{self.best.monitor} {score:.4f}"
        datasets = getattr(self.datamodule, "datasets", {})
        made = isinstance(self.datamodule, SyntheticDataModule)  # its images lie in a cache folder
        image = _shown(datasets["val"].samples[0].image) if "val" in datasets and not made else "IMAGES"
        logger = self.trainer.loggers[0]
        print(
            f"\nRun folder  {_shown(logger.log_dir or '')}\n"
            f"Best        {scored}\n"
            "Next\n"
            f"  vocseg test --ckpt_path {best}\n"
            f"  vocseg predict --ckpt_path {best} --data.predict_path {image}\n"
            f"  vocseg report {_shown(logger.log_dir or '')}\n"
            f"  tensorboard --logdir {_shown(logger.save_dir or '')}"
        )

    def after_predict(self) -> None:
        """Prints where the masks are."""
        if not self.trainer.is_global_zero:
            return
        writer: PredictionWriter = self.config_init[self.subcommand]["predictions"]
        folder = _shown(writer.folder)
        print(f"\nMasks written to {folder}: {len(writer.written)}")
        if writer.contact_sheet and writer.written:
            print(f"All of them  {folder}/index.html")
        if writer.unreadable:
            raise VocsegError("\n".join([f"Not predicted: {len(writer.unreadable)}", *writer.unreadable]))

    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def _logger(self, logs: Path) -> TensorBoardLogger:
        if self._run_folder is None:
            return TensorBoardLogger(logs, name=self._settings().name, default_hp_metric=False)
        # test, predict and a resumed fit add to the run of their checkpoint
        folder = self._run_folder.path
        return TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
        )


class LastCheckpoint(ModelCheckpoint):
    """Writes the last epoch's checkpoint; Lightning keeps the state of a user's own ModelCheckpoint apart from it.

    Args:
        best: the callback that writes the best one, whose path the last one holds.
    """

    def __init__(self, best: ModelCheckpoint) -> None:
        super().__init__(best.dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.best = best

    def state_dict(self) -> dict[str, Any]:
        """Adds the path of the best checkpoint, see :func:`vocseg.checkpoints.best_beside`."""
        return {**super().state_dict(), "best": self.best.best_model_path}


def _last_checkpoints(settings: Any, name: str) -> tuple[Path, str]:
    """Where a fit with these settings keeps its last checkpoint: a folder, and a glob in it.

    Raises:
        VocsegError: its logger has no folder of its own.
    """
    if settings.checkpoint.dirpath:
        return Path(settings.checkpoint.dirpath), "last.ckpt"
    logger = (_listed(settings.trainer.logger) or [True])[0]
    root = Path(settings.trainer.default_root_dir or ".")
    if logger is True:
        return root / LOGS, f"{glob.escape(name)}/*/checkpoints/last.ckpt"
    if logger is False:
        return root / "checkpoints", "last.ckpt"
    kind, init = str(logger.get("class_path", "")), logger.get("init_args", {})
    if kind.rpartition(".")[2] not in ("TensorBoardLogger", "CSVLogger"):
        raise VocsegError(
            f"--ckpt_path last does not know where {kind} keeps the checkpoints of a run. Name the file: --ckpt_path "
            "<folder>/last.ckpt, or give the folder with --checkpoint.dirpath."
        )
    return Path(init.get("save_dir")), f"{glob.escape(init.get('name') or '')}/*/checkpoints/last.ckpt".lstrip("/")


def _mode_of(monitor: str, mode: str) -> str:
    """The mode that a monitored score needs.

    Raises:
        VocsegError: another mode was given, which would keep the worst epoch.
    """
    is_loss = "loss" in monitor.rpartition("/")[2] and "/iou/" not in monitor  # a class may have such a name
    needed = "min" if is_loss else "max"
    if mode != AUTO and mode != needed and monitor.startswith(("val/", "train/")):
        raise VocsegError(
            f"--checkpoint.mode {mode} would keep the worst epoch by {monitor}: leave the mode out, or give {needed}."
        )
    return needed if mode == AUTO else mode


def _run_name(settings: Any, configs: Sequence[str]) -> str | None:
    return settings.name or "-".join(Path(config).stem for config in configs) or None


def _listed(setting: Any) -> list[Any]:
    """What the trainer takes as None, as one object, or as a list of them."""
    return list(setting) if isinstance(setting, list | tuple) else [] if setting is None else [setting]


def _shown(path: str | Path) -> str:
    """The path as a user would type it here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
