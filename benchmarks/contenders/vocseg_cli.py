"""vocseg, through its command line in this process."""

import time
from pathlib import Path
from typing import Any

from contenders.shared import CLASSES, Settings, images_per_second

from vocseg.lightning_cli import run


class Vocseg:
    """vocseg's command line; the network is that of ``mobilenet.yaml``, or segmentation_models.pytorch's FPN."""

    def __init__(self, settings: Settings, network: tuple[str, ...] = (), in_memory: bool = True) -> None:
        self.settings = settings
        limit = str(settings.limit)
        self.options = [
            *("--data.root", settings.root, "--data.num_workers", str(settings.workers)),
            *("--trainer.limit_val_batches", limit, "--trainer.callbacks+", "contenders.shared.Timer"),
            *("--data.in_memory", str(in_memory).lower()),
        ]
        self.network = network
        self.fitted: Any = None
        self.checkpoint = ""

    def _timer(self, args: list[str]) -> Any:
        cli = run(args)
        self.timer = next(callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Timer")
        return cli

    def epoch(self) -> float:
        """One epoch of ``vocseg fit``."""
        self.fitted = self._timer(
            [
                *("fit", "--config", "mobilenet", "--model.backbone.weights", "null", *self.network, *self.options),
                *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
                *("--trainer.limit_train_batches", str(self.settings.limit)),
                *("--trainer.default_root_dir", self.settings.folder),
            ]
        )
        self.checkpoint = self.fitted.last.best_model_path
        return self.timer.seconds

    def evaluation(self) -> float:
        """``vocseg validate``, from the first batch to the scores."""
        self._timer(["validate", "--ckpt_path", self.checkpoint, *self.options])
        return self.timer.validation_seconds

    def data(self) -> float:
        """The loader of the fit."""
        return images_per_second((batch["image"] for batch in self.fitted.datamodule.train_dataloader()), self.settings)

    def prediction(self, *more: str) -> float:
        """``vocseg predict``, from the call to the last file."""
        names = Path(self.settings.folder) / "photographs.txt"
        names.write_text("\n".join(map(str, self.settings.to_predict())))
        started = time.perf_counter()
        options = [*("--predictions.overlays", "false", "--predictions.contact_sheet", "false", *more)]
        options += ["--data.num_workers", str(self.settings.workers)]
        run(["predict", "--ckpt_path", self.checkpoint, "--data.predict_path", str(names), *options])
        return time.perf_counter() - started


class VocsegWithFPN(Vocseg):
    """vocseg with the network of segmentation_models.pytorch's example, reading from disk in every epoch as it does."""

    def __init__(self, settings: Settings) -> None:
        config = Path(settings.folder) / "fpn.yaml"
        config.write_text(
            "model:\n  backbone:\n    class_path: WholeNetwork\n    init_args:\n"
            "      network: segmentation_models_pytorch.FPN\n"
            f"      settings: {{encoder_name: mobilenet_v2, classes: {CLASSES}}}\n  decoder: null\n"
        )
        super().__init__(settings, ("--config", str(config)), in_memory=False)

    def prediction(self, *more: str) -> float:
        """With overlays and the page of all images, as by default."""
        return super().prediction("--predictions.overlays", "true", "--predictions.contact_sheet", "true")
