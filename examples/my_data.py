"""Data of your own, where no list or folder of vocseg's fits: say where the samples are, vocseg does the rest.

    vocseg fit --config mobilenet --data my_data.CSVData --data.table samples.csv \
        --data.class_names "[background, cat, dog]"

``samples.csv`` has the columns ``role`` (train, val or test), ``image`` and ``mask``; paths are relative to it.
"""

import csv
from pathlib import Path
from typing import Any

from vocseg import SegmentationDataModule, VocsegError
from vocseg.data.files import Sample


class CSVData(SegmentationDataModule):
    """The samples of a CSV file. Batches, transforms, checks and resuming are SegmentationDataModule's.

    Args:
        table: the CSV file.
        class_names: one name per label.
        **settings: as :class:`vocseg.SegmentationDataModule`.
    """

    def __init__(self, table: str, class_names: list[str], **settings: Any) -> None:
        super().__init__(class_names, **settings)
        self.table = Path(table)
        self.save_hyperparameters({"table": str(self.table.resolve())})

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role, in the order of the file."""
        with self.table.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["role"] == role]
        if not rows:
            raise VocsegError(f"{self.table} has no row with the role {role!r}.")
        folder = self.table.parent
        return [Sample(folder / row["image"], folder / row["mask"]) for row in rows]
