"""The data module for streams in docs/clusters.md works as written."""

import io
import re
import sys
import tarfile
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from vocseg.data.synthetic import SYNTHETIC_CLASSES, render_sample
from vocseg.lightning_cli import run

PAGE = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text(encoding="utf-8")
COUNTS = {"train": 9, "val": 7}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A folder with stream.py of the page, and three tar files of each split."""
    (code,) = re.findall(r"<!-- stream.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "stream.py").write_text(code, encoding="utf-8")
    for split, count in COUNTS.items():
        for shard in range(3):
            with tarfile.open(tmp_path / f"{split}-{shard}.tar", "w") as tar:
                for index in range(shard, count, 3):
                    for array, ending in zip(render_sample(0, split, index), ("jpg", "png"), strict=True):
                        file = io.BytesIO()
                        Image.fromarray(array).save(file, {"jpg": "JPEG", "png": "PNG"}[ending])
                        member = tarfile.TarInfo(f"{index}.{ending}")
                        member.size = file.tell()
                        file.seek(0)
                        tar.addfile(member, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("stream", None)


def test_a_stream_trains_and_every_image_is_scored_once(shards):
    cli = run(
        [
            *("fit", "--data", "stream.Stream", "--data.train", "train-*.tar", "--data.val", "val-*.tar"),
            *("--data.class_names", str(list(SYNTHETIC_CLASSES)), "--data.batch_size", "3"),
            *("--model.backbone", "StridedEncoder", "--model.backbone.widths", "[4]"),
            *("--model.decoder", "SkipDecoder", "--model.decoder.width", "8"),
            *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"),
            *("--trainer.enable_progress_bar", "false"),
        ]
    )
    assert cli.trainer.global_step == 2
    assert len(cli.model.results["val"].matrices) == COUNTS["val"]


def test_processes_and_workers_divide_the_shards(shards, monkeypatch):
    import stream

    monkeypatch.setattr(stream, "get_worker_info", lambda: worker)
    files = [str(file) for file in shards.glob("val-*.tar")]
    shares = []
    for rank, number in product(range(2), range(2)):
        worker = type("Worker", (), {"id": number, "num_workers": 2})
        shares.append(len(list(stream.Shards(files, rank, 2))))
    assert sorted(shares) == [0, 2, 2, 3]
