"""Serve the page: its policy, its style, and bounds on what may be sent to it."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from util.images import formats
from utils import InputError

BESIDES = 2**20  # bytes of a request beside the picture that it may hold
STYLE = """
#gallery .grid-wrap { max-height: none }
#gallery .caption-label { white-space: normal; overflow-wrap: anywhere; max-width: 100%; text-align: left }
"""
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'"
)  # the browser asks no other machine for anything
HEADERS = [(b"content-security-policy", POLICY), (b"x-content-type-options", b"nosniff")]


class Guard:
    """Answer 413 to a request longer than `limit` bytes, cut one off that hides its length; add our headers to all."""

    def __init__(self, app: Callable, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        received = 0

        async def with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        async def bounded() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.limit else {"type": "http.disconnect"}

        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        too_long = int(length) > self.limit
        app = PlainTextResponse("the request is too long", status_code=413) if too_long else self.app
        await app(scope, bounded, with_headers)


def serve(page: gr.Blocks, host: str, port: int, upload_mb: int) -> str:
    """Start serving in the background and return the address. Raises InputError for a port that is taken."""
    for name in Image.OPEN.keys() - set(formats()):
        del Image.OPEN[name]  # Gradio opens uploads by Pillow: a format of programs (EPS) is none of ours
        Image.ID.remove(name)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=f"{upload_mb}mb",
            css=STYLE,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            app_kwargs={"middleware": [Middleware(Guard, limit=upload_mb * 2**20 + BESIDES)]},
        )
    except OSError as error:
        reason = str(error).partition(".")[0]
        raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from None
    return address
