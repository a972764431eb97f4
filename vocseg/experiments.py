"""The packaged experiments: one YAML file each, found by name from any folder."""

from pathlib import Path

from vocseg.errors import VocsegError, nearest


def experiments_folder() -> Path:
    """Where the YAML files are: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "packaged_experiments"
    return packaged if packaged.is_dir() else package.parent / "experiments"


def list_experiments() -> list[tuple[str, str]]:
    """Name and one line (the first comment line) of each experiment."""
    found = []
    for path in sorted(experiments_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found.append((path.stem, first.lstrip("# ").strip()))
    return found


def resolve_config(given: str) -> str:
    """The path of a ``--config``: the file itself, or else the packaged experiment of that name.

    ``transfer``, ``transfer.yaml`` and ``experiments/transfer.yaml`` all find the packaged transfer.yaml.

    Raises:
        VocsegError: there is neither, with the nearest name.
    """
    if Path(given).is_file():
        return given
    packaged = experiments_folder() / f"{Path(given).stem}.yaml"
    suits = Path(given).suffix in ("", ".yaml", ".yml") and str(Path(given).parent) in (".", "experiments")
    if suits and packaged.is_file():
        return str(packaged)
    names = [name for name, _ in list_experiments()]
    raise VocsegError(
        f"There is no config {given!r}: neither a file nor a packaged experiment ({', '.join(names)})."
        + nearest(Path(given).stem, names)
    )
