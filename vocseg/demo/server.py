"""The web application of ``vocseg demo``: one page, and the address that segments what the page sends."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import anyio
import torch
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vocseg import pages
from vocseg.data.labels import VOC_PALETTE
from vocseg.demo.segmentation import STEPS, segment_upload
from vocseg.errors import VocsegError
from vocseg.overlays import OVERLAY_COLOURS
from vocseg.task import SegmentationTask

CONTENT_TYPE = "application/octet-stream"
"""Of an upload. A page of another site cannot send it: its browser asks this server first, which does not answer."""


class Limits(NamedTuple):
    """The largest uploads.

    Attributes:
        megabytes: of a file, in 10**6 bytes.
        megapixels: of an image, in 10**6 pixels.
    """

    megabytes: float
    megapixels: float


def create_app(
    task: SegmentationTask, checkpoint: str, limits: Limits, hosts: Sequence[str] | None = None
) -> Starlette:
    """Builds the application.

    ``GET /`` answers the page. ``POST /segment`` with the bytes of an image file answers JSON, see
    :func:`vocseg.demo.segmentation.segment_upload`, or ``{"error": sentence}``. One image at a time is in the network.
    Nothing is written to disk.

    Args:
        task: in eval mode and on its device.
        checkpoint: its name, for the page.
        limits: the largest uploads.
        hosts: names of this server that a request may ask for; None: any.
    """
    page, policy = _page(task, checkpoint, limits)
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    one_at_a_time = anyio.CapacityLimiter(1)

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def segment(request: Request) -> Response:
        if request.headers.get("content-type") != CONTENT_TYPE:
            raise HTTPException(415, f"Send the bytes of an image file as {CONTENT_TYPE}.")
        content = await _body(request, limits.megabytes)
        try:  # in a thread: the page stays responsive
            answer = await to_thread.run_sync(_answer, task, content, limits.megapixels, limiter=one_at_a_time)
        except anyio.get_cancelled_exc_class():  # the server was told twice to end
            raise HTTPException(503, "The demo was ended.") from None
        return JSONResponse(answer, headers={"X-Content-Type-Options": "nosniff"})

    return Starlette(
        routes=[Route("/", show), Route("/segment", segment, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts) if hosts else ["*"])],
        exception_handlers={HTTPException: _refusal, Exception: _failure},
    )


def _answer(task: SegmentationTask, content: bytes, megapixels: float) -> dict:
    try:
        return segment_upload(task, content, megapixels)
    except VocsegError as error:
        raise HTTPException(422, str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise HTTPException(413, "There is not enough memory for this image: send a smaller one.") from error


async def _body(request: Request, megabytes: float) -> bytes:
    """The body of a request; it is read no farther than the limit."""
    content = bytearray()
    refusal = HTTPException(413, f"The file has more than {megabytes:g} MB (--max_megabytes).")
    if int(request.headers.get("content-length", 0)) > megabytes * 1e6:
        raise refusal
    async for part in request.stream():
        content += part
        if len(content) > megabytes * 1e6:
            raise refusal
    if not content:
        raise HTTPException(422, "The file is empty.")
    return bytes(content)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The demo failed on this file; its terminal says why."}, 500)


def _page(task: SegmentationTask, checkpoint: str, limits: Limits) -> tuple[str, str]:
    """The page, and the policy that lets it load nothing and run no scripts but its own."""
    parts = files("vocseg.demo")
    body, style, script = (parts.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    setup = {
        "classes": [
            {
                "name": name,
                "colour": OVERLAY_COLOURS[label].tolist(),
                "maskColour": VOC_PALETTE[label].tolist(),
            }
            for label, name in enumerate(task.class_names)
        ],
        "steps": STEPS,
        "megabytes": limits.megabytes,
    }
    about = [f"Checkpoint {pages.text(checkpoint).replace('/', '/<wbr>')}", f"{len(task.class_names)} classes"]
    about.append(f"on {task.device.type}")
    content = pages.page(
        "Segment photographs",
        [
            f'<p class="about">{" · ".join(about)}</p>',
            body.replace("{megabytes}", f"{limits.megabytes:g}"),
            f'<script type="application/json" id="setup">{json.dumps(setup).replace("<", chr(92) + "u003c")}</script>',
            f"<script>{script}</script>",
        ],
        style,
    )
    scripts = " ".join(f"'sha256-{_sha256(each)}'" for each in (script, pages.SCRIPT))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _sha256(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
