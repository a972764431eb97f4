"""``vocseg demo``: loads a checkpoint and serves the page until Ctrl-C."""

import argparse
import contextlib
import errno
import importlib
import ipaddress
import socket
import sys
import warnings
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vocseg.errors import ArgumentParser, VocsegError

if TYPE_CHECKING:
    from vocseg.task import SegmentationTask


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg demo ...``.

    Args:
        args: the words after ``vocseg demo``.

    Raises:
        VocsegError: a mistake in them, a checkpoint that cannot be loaded, an address that is in use, or the packages
            of the extra ``demo`` are missing.
    """
    given = make_parser().parse_args(args)
    if not given.host:
        raise VocsegError("--host needs an address, such as 127.0.0.1.")
    try:
        import uvicorn

        from vocseg.demo.server import Limits, create_app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "anyio"):
            raise
        raise VocsegError(f'vocseg demo needs {package}: pip install "vocseg[demo]"') from error
    with _listen(given.host, given.port) as listening:
        task, checkpoint = _load(given.ckpt_path, given.device)
        app = create_app(task, checkpoint, Limits(given.max_megabytes, given.max_megapixels), trusted_hosts(given.host))
        if trusted_hosts(given.host) is None:
            print(
                f"Warning: with --host {given.host} every machine that reaches this one can use the demo, and what it "
                "sends is not encrypted.",
                file=sys.stderr,
            )
        host = f"[{given.host}]" if ":" in given.host else given.host
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"Checkpoint  {checkpoint}: {len(task.class_names)} classes, on {task.device}")
        print(f"Demo        {url}  (Ctrl-C ends it)", flush=True)
        if given.open == "true":
            webbrowser.open(url)
        settings = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off", ws="none")
        with contextlib.suppress(KeyboardInterrupt):  # raised again when the image in work is answered
            uvicorn.Server(settings).run(sockets=[listening])
        print("Demo ended")


def make_parser() -> argparse.ArgumentParser:
    """The options of ``vocseg demo``."""
    parser = ArgumentParser(
        prog="vocseg demo",
        description="Serves a page to this computer on which a checkpoint segments photographs. Nothing is written to "
        "disk.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a checkpoint, or a run's folder or name: its best one")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve; 0.0.0.0: to the network (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto: a GPU if there is one (default: %(default)s)"
    )
    parser.add_argument("--open", choices=("true", "false"), default="false", help="open the page in the browser")
    parser.add_argument(
        "--max_megabytes", type=_positive, default=20, help="largest file that is taken (default: %(default)g)"
    )
    parser.add_argument(
        "--max_megapixels", type=_positive, default=50, help="largest photograph that is taken (default: %(default)g)"
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:  # NaN, too
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return number


def trusted_hosts(host: str) -> list[str] | None:
    """The names under which a loopback address may be asked for; None for an address that others reach.

    A page of another site whose name was made to point to 127.0.0.1 (DNS rebinding) asks for its own name.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        is_loopback = False
    return ["localhost", "127.0.0.1", "::1", "[::1]", host] if is_loopback else None


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise VocsegError(
                f"Port {port} of {host} is in use: choose another with --port, or --port 0 for a free one."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise VocsegError(f"{host}, port {port}, cannot be served ({reason}): see --host and --port.") from error


def _load(ckpt_path: str, device: str) -> "tuple[SegmentationTask, str]":
    """The task, in eval mode and on its device, and the name of its checkpoint."""
    import torch

    from vocseg.checkpoints import checkpoint_settings
    from vocseg.components import factory_from_config
    from vocseg.initialization import checkpoint_of
    from vocseg.task import SegmentationTask

    path = checkpoint_of(ckpt_path)
    model = checkpoint_settings(path)["model"]["class_path"]
    task_class = factory_from_config({"class_path": model}, "model", SegmentationTask).func
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated")
        task = task_class.from_run(path)
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    try:
        task.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a device that is not there
        reason = str(error).strip().partition("\n")[0]
        raise VocsegError(f"--device {device} cannot be used: {reason}") from error
    importlib.import_module("vocseg.data.transforms")  # else the first upload would wait for it
    return task, "/".join(path.parts[-4:])  # <name>/version_N/checkpoints/best.ckpt
