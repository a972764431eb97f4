"""config.yaml of a run: the settings that its fit began with, and those that a resumed fit changed."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from vocseg.run_folder import RunFolder


class SaveFitConfig(SaveConfigCallback):
    """Saves the config of a fit, without the checkpoint that it started from: a saved config starts a new run."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves ``config.yaml`` when a fit begins; a resumed fit saves what changed in ``config_1.yaml``, ..."""
        if stage != "fit" or not trainer.loggers:  # without a logger there is no run folder
            return
        self.config = self.config.clone()
        self.config.pop("ckpt_path", None)
        saved = trainer.strategy.broadcast(RunFolder(Path(trainer.log_dir or ".")).configs)
        if saved:
            before = _flat(yaml.safe_load(saved[-1].read_text(encoding="utf-8")))
            now = _flat(yaml.safe_load(self.parser.dump(self.config, skip_unset=False)))
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            names = [name for name in changed if name not in ("ckpt_path", "init_from")]  # where a run starts from
            if not names:
                return
            self.config_filename = f"config_{len(saved)}.yaml"
            if trainer.is_global_zero:
                changes = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
                sys.stderr.write(f"Settings that differ from before, saved in {self.config_filename}: {changes}\n")
        super().setup(trainer, pl_module, stage)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix(".").replace(".init_args", ""): settings}
    parts = (_flat(value, f"{prefix}{name}.") for name, value in settings.items())
    return {name: value for part in parts for name, value in part.items()}
