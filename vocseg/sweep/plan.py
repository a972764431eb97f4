"""The runs of a sweep: read from a file and from flags, and checked before anything is trained."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vocseg.errors import VocsegError, nearest
from vocseg.experiments import resolve_config
from vocseg.lightning_cli import VocsegCLI, run
from vocseg.records import without_own_paths
from vocseg.run_folder import LOGS
from vocseg.saving import write_json
from vocseg.sweep.runner import Job

KEYS = ("name", "runs", "seeds", "set", "grid", "test")
"""What a sweep file may say."""

_RESERVED = {
    "name": "the sweep names its runs",
    "seed_everything": "give seeds, or --seeds 0 1 2",
    "config": "give runs, or --config a b c",
    "ckpt_path": "a sweep resumes its own runs",
    "trainer.default_root_dir": "--to names the folder of the sweep",
    "trainer.logger": "a sweep reads the files of vocseg's own loggers",
}
_FLAGS = ("config", "seeds", "set", "name", "test", "to", "check")
_WHERE_TO_RUN = ("data.root", "data.num_workers", "data.in_memory", "trainer.accelerator", "trainer.devices")
"""Settings that may differ between a run and its resumption, beside those of what is shown."""


@dataclass(frozen=True)
class Setting:
    """One configuration, which is trained once per seed.

    Attributes:
        name: of its row in the tables, and of its runs.
        configs: values of ``--config``, in their order.
        options: further settings of ``vocseg fit``, as (name, value); the later win.
    """

    name: str
    configs: Sequence[str]
    options: Sequence[tuple[str, str]] = ()

    def words(self) -> list[str]:
        """The words after ``vocseg fit``, without seed and name."""
        configs = [word for config in self.configs for word in ("--config", config)]
        return configs + [word for name, value in self.options for word in (f"--{name}", value)]

    def scoring(self) -> list[str]:
        """The words that say how to score: settings of the trainer, which a checkpoint does not hold."""
        return [word for name, value in self.options if name.startswith("trainer.") for word in (f"--{name}", value)]

    def facts(self) -> dict[str, Any]:
        """What identifies its results: configs, options, and a digest of both with the content of the configs."""
        options = [pair for pair in self.options if pair[0] not in _WHERE_TO_RUN and "enable_" not in pair[0]]
        contents = [yaml.safe_load(Path(resolve_config(config)).read_text(encoding="utf-8")) for config in self.configs]
        listed: dict[str, Any] = without_own_paths(
            {"configs": [*self.configs], "options": [list(pair) for pair in options]}
        )
        text = json.dumps([listed, contents], sort_keys=True, default=str)
        return {**listed, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


@dataclass
class Plan:
    """A sweep.

    Attributes:
        name: of the sweep.
        folder: that it writes.
        settings: what is compared.
        seeds: each setting is trained once with each.
        test: whether the test split is scored, too.
        source: the file, or an empty string.
    """

    name: str
    folder: Path
    settings: list[Setting] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    test: bool = False
    source: str = ""

    @property
    def splits(self) -> list[str]:
        """The splits to score."""
        return ["val", "test"] if self.test else ["val"]

    @property
    def size(self) -> str:
        """How many settings and seeds: ``2 settings x 1 seed``."""
        return f"{counted(len(self.settings), 'setting')} x {counted(len(self.seeds), 'seed')}"

    def run_name(self, setting: Setting, seed: int) -> str:
        """The name of a run, ``mobilenet-seed_0``."""
        return f"{setting.name}-seed_{seed}"

    def record(self, setting: Setting, seed: int) -> Path:
        """The folder of a run's record."""
        return self.folder / "records" / self.run_name(setting, seed)

    def runs(self, setting: Setting, seed: int) -> Path:
        """The folder of the versions of a run."""
        return self.folder / LOGS / self.run_name(setting, seed)

    def jobs(self) -> list[Job]:
        """The runs: for each seed, all settings, so that an early look compares all of them."""
        return [self._job(setting, seed) for seed in self.seeds for setting in self.settings]

    def _job(self, setting: Setting, seed: int) -> Job:
        name, root = self.run_name(setting, seed), ["--trainer.default_root_dir", str(self.folder)]
        fit = [*setting.words(), "--name", name, "--seed_everything", str(seed), *root]
        facts = {"sweep": self.name, "setting": setting.name, **setting.facts()}
        scoring = [*setting.scoring(), *root]
        return Job(name, str(self.record(setting, seed)), fit, scoring, self.splits, facts)


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def read_plan(
    file: str | None = None,
    *,
    name: str | None = None,
    folder: str | None = None,
    configs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    sets: Sequence[str] = (),
    test: bool | None = None,
    options: Sequence[str] = (),
) -> Plan:
    """Makes a plan from a sweep file and flags, which override it.

    Args:
        file: path of the YAML file.
        name: of the sweep; default: the file's, or the configs joined by a hyphen.
        folder: to write; default: ``sweeps/<name>``.
        configs: one run for each, in place of the file's ``runs``.
        seeds: in place of the file's.
        sets: ``key=value`` for all runs; ``key=a,b`` for a run with each value.
        test: whether to score the test split.
        options: further words of ``vocseg fit`` for all runs.

    Raises:
        VocsegError: a mistake, with the file and the nearest valid word.
    """
    content = {} if file is None else _read_file(Path(file))
    where = f"{file}: " if file else ""
    dimensions = [_dimension(text) for text in sets]
    extra = read_options(options)
    of_runs = [Setting(Path(config).stem, [config]) for config in configs] or _runs(content.get("runs"), where)
    if not of_runs:
        raise VocsegError(
            f"{where}there is nothing to run: give runs (name: config), or --config mobilenet baseline"
            if file
            else "There is nothing to run: vocseg sweep my_runs.yaml, or vocseg sweep --config mobilenet baseline"
        )
    common = _options(content.get("set"), where, "set")
    grid = [*_grid(content.get("grid"), where), *dimensions]
    by_flag = {key for key, _ in dimensions}
    grid = [pair for number, pair in enumerate(grid) if number >= len(grid) - len(dimensions) or pair[0] not in by_flag]
    of_runs = [replace(setting, options=[*common, *setting.options]) for setting in of_runs]
    settings = _product(of_runs, grid, extra)
    _check_settings(settings, where)
    name = name or content.get("name") or (Path(file).stem if file else "-".join(Path(each).stem for each in configs))
    _check_name(name, f"{where}the name of the sweep")
    return Plan(
        name=name,
        folder=Path(folder).expanduser() if folder else Path("sweeps") / name,
        settings=settings,
        seeds=_seeds(list(seeds) or content.get("seeds", [0]), "" if seeds else where),
        test=content.get("test", False) if test is None else test,
        source=file or "",
    )


def check_words(plan: Plan) -> None:
    """Parses the settings of every run as ``vocseg fit`` will, and compares them with those of earlier runs.

    Raises:
        VocsegError: a mistake in them, or a record of other settings has the place of a run's.
    """
    for setting in plan.settings:
        try:
            run(["fit", *setting.words()], _ParseOnly)
        except _Parsed:
            pass
        except VocsegError as error:
            where = f"{plan.source}: " if plan.source else ""
            raise VocsegError(f"{where}run {setting.name!r}: {error}") from error
    for setting, seed in itertools.product(plan.settings, plan.seeds):
        record, facts = plan.record(setting, seed), setting.facts()
        try:
            before = json.loads((record / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # none, or incomplete: the run writes it again
        if isinstance(before, dict) and before.get("digest") != facts["digest"]:
            raise VocsegError(
                f"{record} was made with other settings{_difference(before, facts)}. Give this sweep another --name, "
                "or delete that folder to run it again."
            )


def begin_runs(plan: Plan) -> None:
    """Notes the settings that each run begins with.

    An unfinished run that began with other settings must not be resumed: its folder is renamed.
    """
    for setting, seed in itertools.product(plan.settings, plan.seeds):
        runs, facts = plan.runs(setting, seed), setting.facts()
        began = runs / "settings.json"
        try:
            same = json.loads(began.read_text(encoding="utf-8"))["digest"] == facts["digest"]
        except (OSError, ValueError, KeyError):
            same = False
        if same:
            continue
        if any(runs.glob("version_*")):
            others = (Path(f"{runs}-before_{number}") for number in itertools.count(1))
            aside = next(folder for folder in others if not folder.exists())
            runs.rename(aside)
            print(f"{runs.name} began with other settings. It starts anew; what there was is now in {aside}")
        write_json(began, facts)


class _Parsed(Exception):
    pass


class _ParseOnly(VocsegCLI):
    """Ends when all options are parsed."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        raise _Parsed


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        twice = [key for key, count in Counter(keys).items() if count > 1 and key != "<<"]
        if twice:
            raise VocsegError(f"the name {twice[0]!r} stands twice, in line {node.start_mark.line + 1} or below.")
        return super().construct_mapping(node, deep)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        beside = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise VocsegError(f"There is no sweep file {path}.{nearest(path.name, beside)}") from None
    except VocsegError as error:
        raise VocsegError(f"{path}: {error}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise VocsegError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise VocsegError(f"{path} must hold keys and values: {', '.join(KEYS)}.")
    _check_keys(content, KEYS, f"{path}: ")
    for key, kind, form in (("name", str, "a word"), ("test", bool, "true or false")):
        if key in content and not isinstance(content[key], kind):
            raise VocsegError(f"{path}: {key} must be {form}; got {content[key]!r}")
    return content


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise VocsegError(f"{where}there is no key {key!r}.{nearest(str(key), known)} Keys: {', '.join(known)}.")


def _runs(runs: Any, where: str) -> list[Setting]:
    if runs is None:
        return []
    if isinstance(runs, list) and all(isinstance(each, str) for each in runs):
        _check_unique([Path(each).stem for each in runs], where)
        runs = {Path(each).stem: each for each in runs}
    if not isinstance(runs, dict) or not runs:
        raise VocsegError(f"{where}runs must map names to configs (lite: efficientnet_lite), at least one.")
    return [_run(str(name), run, where) for name, run in runs.items()]


def _check_unique(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise VocsegError(f"{where}two runs have the name {twice[0]!r}.")


def _run(name: str, content: Any, where: str) -> Setting:
    _check_name(name, f"{where}the name of run")
    where = f"{where}run {name!r}: "
    content = content if isinstance(content, dict) else {"config": content}
    _check_keys(content, ("config", "set"), where)
    configs = content.get("config")
    configs = configs if isinstance(configs, list) else [configs]
    if not configs or not all(isinstance(config, str) for config in configs):
        raise VocsegError(f"{where}config must be the name of an experiment or a file, or a list of them.")
    return Setting(name, configs, _options(content.get("set"), where, "set"))


def _options(settings: Any, where: str, key: str) -> list[tuple[str, str]]:
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise VocsegError(f"{where}{key} must map settings to values (model.optimizer.lr: 1e-3).")
    return [(str(name).removeprefix("--"), _word(value)) for name, value in settings.items()]


def _grid(grid: Any, where: str) -> list[tuple[str, list[str]]]:
    if grid is None:
        return []
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise VocsegError(
            f"{where}grid must map settings to lists of values (model.optimizer.lr: [1e-3, 3e-4]), none empty."
        )
    return [(str(name).removeprefix("--"), [_word(value) for value in values]) for name, values in grid.items()]


def _word(value: Any) -> str:
    """A value of YAML as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _dimension(text: str) -> tuple[str, list[str]]:
    """A setting and its values, from ``key=a,b``; a comma inside brackets or quotes does not separate."""
    key, equals, values = text.removeprefix("--").partition("=")
    parts = re.findall(r"""(?:\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|[^,])+|(?<=,)(?=,|$)|^(?=,|$)""", values)
    if not equals or not key or not all(part.strip() for part in parts):
        raise VocsegError(f"--set {text}: give a setting and its values, --set model.optimizer.lr=1e-3,3e-4")
    return key, [part.strip() for part in parts]


def read_options(options: Sequence[str]) -> list[tuple[str, str]]:
    """Words of ``vocseg fit`` as names and values."""
    pairs: list[tuple[str, str]] = []
    words = [*options]
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            own = nearest(pairs[-1][0], _FLAGS) if pairs and "." not in pairs[-1][0] else ""
            if own:  # --seed 0 1 2
                raise VocsegError(f"There is no option --{pairs[-1][0]}.{own}")
            raise VocsegError(f"Unexpected argument {word!r}. A sweep has one file; its flags: vocseg sweep --help")
        own = nearest(name, _FLAGS)
        if "." not in name and not equals and own and (not words or words[0].startswith("--")):
            raise VocsegError(f"There is no option --{name}.{own}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise VocsegError(f"--{name} needs a value: --{name} VALUE.{own}")
            value = words.pop(0)
        pairs.append((name, value))
    return pairs


def _product(
    runs: Sequence[Setting], grid: Sequence[tuple[str, list[str]]], extra: Sequence[tuple[str, str]]
) -> list[Setting]:
    """Every run with every combination of the grid's values."""
    varying = [key for key, values in grid if len(values) > 1]
    ends = Counter(key.rpartition(".")[2] for key in varying)
    settings = []
    for setting, values in itertools.product(runs, itertools.product(*(values for _, values in grid))):
        chosen = list(zip((key for key, _ in grid), values, strict=True))
        parts = [] if len(runs) == 1 and varying else [setting.name]
        for key, value in chosen:
            if key in varying:
                end = key.rpartition(".")[2]
                short = end if ends[end] == 1 else ".".join(key.split(".")[-2:])
                # model.backbone.name: the value says enough
                parts.append(_short(value) if short == "name" else f"{short}={_short(value)}")
        later = [*chosen, *extra]
        overridden = {key for key, _ in later if not key.endswith("+")}
        options = [pair for pair in setting.options if pair[0] not in overridden] + later
        # a component before its settings: model.backbone, then model.backbone.width
        options.sort(key=lambda pair: pair[0].count("."))
        settings.append(Setting("-".join(parts), setting.configs, options))
    return settings


def _short(value: str) -> str:
    """A value as part of a file name."""
    value = Path(value).stem if "/" in value else value
    return re.sub(r"[^\w.+-]+", "_", value).strip("_.")[:40] or "value"


def _check_settings(settings: Sequence[Setting], where: str) -> None:
    _check_unique([setting.name for setting in settings], where)
    for setting in settings:
        for config in setting.configs:
            try:
                path = resolve_config(config)
            except VocsegError as error:
                raise VocsegError(f"{where}run {setting.name!r}: {error}") from None
            try:
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # for the parser of vocseg fit to report
            if isinstance(content, dict) and "runs" in content:
                raise VocsegError(f"{config} is a sweep file, and no config. It comes first: vocseg sweep {config}")
        for key, _ in setting.options:
            if key in _RESERVED:
                raise VocsegError(f"{where}run {setting.name!r}: {key} is not for a sweep: {_RESERVED[key]}.")


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise VocsegError(f"{what} may have only letters, digits and . _ + = -, since a folder has it; got {name!r}")


def _seeds(seeds: Any, where: str) -> list[int]:
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not valid or not seeds or len({*seeds}) < len(seeds):
        raise VocsegError(f"{where}seeds must be different integers from 0, at least one: [0, 1, 2]; got {seeds!r}")
    return seeds


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first option that differs, in words."""
    if before.get("configs") != now["configs"]:
        return f" (config {before.get('configs')} instead of {now['configs']})"
    old, new = dict(before.get("options", [])), dict(now["options"])
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            return f" ({key} {old.get(key, 'not set')} instead of {new.get(key, 'not set')})"
    return " (its config file has changed)"
