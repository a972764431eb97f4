import multiprocessing
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocseg import VOCDataModule
from vocseg.data import check_cache, images
from vocseg.data.check_cache import check_samples_once
from vocseg.data.files import Sample
from vocseg.data.images import ImageReader
from vocseg.data.masks import MaskReader
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.errors import VocsegError

NAMES = ("background", "a", "b")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vocseg" / "checks-1.sqlite"


@pytest.fixture
def samples(tmp_path):
    """Three samples that did not just change."""
    return [write(tmp_path, name, label) for name, label in (("x", 0), ("y", 1), ("z", 2))]


def write(folder, name, label, age=60.0):
    sample = Sample(folder / f"{name}.jpg", folder / f"{name}.png", name)
    mask = np.full((6, 8), label, np.uint8)
    mask[0] = 255
    Image.new("RGB", (8, 6)).save(sample.image)
    Image.fromarray(mask).save(sample.mask)
    for path in (sample.image, sample.mask):
        os.utime(path, (time.time() - age,) * 2)
    return sample


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names = []

    def decode(path, *args, **settings):
        names.append(path.name)
        return original(path, *args, **settings)

    original = images.decode
    monkeypatch.setattr(images, "decode", decode)  # of images; masks are counted by their images
    return names


def check(samples, masks=None, images=None, **settings):
    found = check_samples_once(samples, masks or MaskReader(NAMES), images or ImageReader(), **settings)
    return [(each.size, each.counts.tolist(), each.read_by, each.values) for each in found]


def test_files_that_did_not_change_are_checked_once(samples, cache, decoded):
    first = check(samples)
    assert first[1][1][1] == 40
    assert first[1][1][255] == 8
    assert sorted(decoded) == ["x.jpg", "y.jpg", "z.jpg"]
    assert check(samples) == first
    assert check(samples[:2]) == first[:2]
    assert len(decoded) == 3
    assert check(samples, keep=True) == first  # in memory: the pixels are needed
    assert len(decoded) == 6


def test_colours_and_values_are_kept_as_they_were(tmp_path, cache, decoded):
    sample = Sample(tmp_path / "x.jpg", tmp_path / "x.png")
    Image.new("RGB", (8, 6)).save(sample.image)
    Image.new("RGB", (8, 6), (9, 8, 7)).save(sample.mask)
    for path in (sample.image, sample.mask):
        os.utime(path, (1e9, 1e9))
    masks = MaskReader.from_settings(NAMES, colours={"a": [9, 8, 7]})
    assert check([sample], masks) == check([sample], masks)
    assert check([sample], masks)[0][2:] == ("colour", ((9, 8, 7),))
    assert decoded == ["x.jpg"]


def test_changed_files_are_checked_again(samples, cache, decoded, tmp_path):
    check(samples)
    status = samples[1].mask.stat()
    changed = write(tmp_path, "y", 2, age=30)
    assert changed.mask.stat().st_size == status.st_size
    assert check(samples)[1][1][2] == 40
    assert decoded[3:] == ["y.jpg"]
    samples[0].image.write_bytes(samples[0].image.read_bytes()[:-100])
    os.utime(samples[0].image, (1e9, 1e9))
    with pytest.raises(VocsegError, match=r"x\.jpg cannot be read"):
        check(samples)


def test_files_that_have_just_changed_are_checked_again(cache, decoded, tmp_path):
    samples = [write(tmp_path, "x", 1, age=0)]
    check(samples)
    check(samples)
    assert decoded == ["x.jpg", "x.jpg"]


@pytest.mark.parametrize(
    "readers",
    [
        (MaskReader((*NAMES, "c")), None),
        (MaskReader.from_settings(NAMES, labels={0: "a"}), None),
        (MaskReader.from_settings(NAMES, ignore_classes=["a"]), None),
        (MaskReader(NAMES, palette=np.zeros((256, 3), np.uint8)), None),
        (MaskReader(NAMES, exif_rotation=False), None),
        (None, ImageReader(bit_depth=12)),
        (None, ImageReader(exif_rotation=False)),
    ],
)
def test_other_settings_of_the_readers_check_again(readers, samples, cache, decoded):
    check(samples[:1])
    check(samples[:1], *readers)
    assert len(decoded) == 2
    check(samples[:1], *readers)
    assert len(decoded) == 2


class UsersReader(MaskReader):
    """A reader whose settings are not known."""


def test_readers_of_the_users_own_check_always(samples, cache, decoded):
    for _ in range(2):
        check(samples[:1], UsersReader(NAMES))
    assert len(decoded) == 2
    assert not cache.exists()


def test_broken_samples_are_reported_each_time_and_the_others_are_kept(samples, cache, decoded):
    samples[2].mask.unlink()
    for _ in range(2):
        with pytest.raises(VocsegError, match=r"z\.png does not exist"):
            check(samples)
    assert sorted(decoded) == ["x.jpg", "y.jpg", "z.jpg", "z.jpg"]


def damage_content(cache):
    cache.write_bytes(b"no database " * 1000)


def damage_entries(cache):
    with sqlite3.connect(cache) as database:
        database.execute("UPDATE checks SET found = '[[6, 8], [1], [2], \"value\", [1]]' WHERE id = 1")
        database.execute("UPDATE checks SET found = 'x' WHERE id = 2")
        database.execute("UPDATE checks SET found = NULL WHERE id = 3")
    database.close()


def damage_pages(cache):
    content = bytearray(cache.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    cache.write_bytes(content)


def replace_table(cache):
    cache.unlink()
    with sqlite3.connect(cache) as database:
        database.execute("CREATE TABLE checks (other TEXT)")
    database.close()


def replace_by_folder(cache):
    cache.unlink()
    cache.mkdir()


@pytest.mark.parametrize("damage", [damage_content, damage_entries, damage_pages, replace_table, replace_by_folder])
def test_a_damaged_cache_is_no_worse_than_none(damage, samples, cache, decoded):
    first = check(samples)
    damage(cache)
    assert check(samples) == first
    assert len(decoded) == 6
    assert check(samples) == first
    assert check(samples) == first
    heals = damage not in (replace_table, replace_by_folder)
    assert (len(decoded) <= 9) == heals


def test_a_folder_that_cannot_be_written_is_no_worse_than_none(samples, cache, decoded):
    cache.parent.parent.write_text("a file in the place of the folder")
    assert check(samples) == check(samples)
    assert len(decoded) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_read(samples, cache, decoded):
    first = check(samples[:2])
    cache.chmod(0o400)
    cache.parent.chmod(0o500)
    assert check(samples)[:2] == first
    assert sorted(decoded) == ["x.jpg", "y.jpg", "z.jpg"]
    cache.parent.chmod(0o700)


def test_a_locked_cache_is_no_worse_than_none(samples, cache, decoded, monkeypatch):
    first = check(samples)
    monkeypatch.setattr(check_cache, "TIMEOUT", 0.05)
    other = sqlite3.connect(cache, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert check(samples) == first
    assert len(decoded) == 6
    other.execute("ROLLBACK")
    other.close()
    assert check(samples) == first
    assert len(decoded) == 6


def test_without_a_home_folder_files_are_checked(samples, monkeypatch, decoded, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "x.jpg" / "below a file"))
    assert check(samples) == check(samples)
    assert len(decoded) == 6


def check_one_by_one(samples):
    for sample in samples:
        check([sample])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a new interpreter takes long")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_write_at_the_same_time(tmp_path, cache, decoded):
    samples = [write(tmp_path, str(number), number % 3) for number in range(30)]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=check_one_by_one, args=[part]) for part in (samples[:20], samples[10:])]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    found = check(samples)
    assert decoded == []
    assert [counts[number % 3] for number, (_, counts, _, _) in enumerate(found)] == [40] * 30


def test_the_oldest_entries_are_deleted(samples, cache, decoded, monkeypatch):
    monkeypatch.setattr(check_cache, "ENTRIES", 2)
    for sample in samples:
        check([sample])
    check(samples[1:])
    assert len(decoded) == 3
    check(samples[:1])
    assert len(decoded) == 4


def test_an_interrupted_check_continues(samples, cache, decoded, monkeypatch):
    original = check_cache.examine_samples

    def interrupted(part, *args, **settings):
        if part[0].name == "z":
            raise KeyboardInterrupt
        return original(part, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(check_cache, "SAMPLES_AT_ONCE", 1)
        patch.setattr(check_cache, "examine_samples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(samples)
    check(samples)
    assert decoded == ["x.jpg", "y.jpg", "z.jpg"]


def test_the_data_module_checks_once_and_counts_the_same(voc_root, cache, decoded):
    for path in Path(voc_root).rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    tables, counts = [], []
    for _ in range(2):
        data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, num_workers=0)
        data.setup("fit")
        tables.append(data.datasets["val"].pixel_counts.tolist())
        counts.append(data.class_counts.tolist())
    assert len(decoded) == 15
    assert tables[0] == tables[1]
    assert counts[0] == counts[1]
    del data.datasets["val"].pixel_counts
    assert data.datasets["val"].pixel_counts.tolist() == tables[0]  # read from the masks
    assert len(decoded) == 15
