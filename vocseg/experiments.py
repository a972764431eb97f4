"""The packaged experiments: one YAML file each, found by its name from any working directory."""

from pathlib import Path

from vocseg.errors import VocsegError, nearest


def experiments_folder() -> Path:
    """The folder of the YAML files: inside the package if installed from a wheel, beside the package in a checkout."""
    package = Path(__file__).parent
    packaged = package / "packaged_experiments"
    return packaged if packaged.is_dir() else package.parent / "experiments"


def list_experiments() -> list[tuple[str, str]]:
    """Lists the packaged experiments as (name, description); the description is the first comment line of the file."""
    found = []
    for path in sorted(experiments_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found.append((path.stem, first.lstrip("# ").strip()))
    return found


def resolve_config(given: str) -> str:
    """Finds the file that a ``--config`` value names: an existing file, or else the packaged experiment.

    ``transfer``, ``transfer.yaml`` and ``experiments/transfer.yaml`` all refer to the packaged transfer.yaml.

    Args:
        given: the value of ``--config``.

    Returns:
        The path of the file.

    Raises:
        VocsegError: there is neither; the message suggests the most similar name.
    """
    if Path(given).is_file():
        return given
    packaged = experiments_folder() / f"{Path(given).stem}.yaml"
    may_be_packaged = Path(given).suffix in ("", ".yaml", ".yml") and str(Path(given).parent) in (".", "experiments")
    if may_be_packaged and packaged.is_file():
        return str(packaged)
    names = [name for name, _ in list_experiments()]
    raise VocsegError(
        f"There is no config {given!r}: it is neither a file nor a packaged experiment ({', '.join(names)})."
        + nearest(Path(given).stem, names)
    )
