"""What serves the page: its policy, its looks, and bounds on what may be sent to it."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from utils import InputError

STYLE = """
#gallery .grid-wrap { max-height: none }
#gallery .caption-label { white-space: normal; overflow-wrap: anywhere; max-width: 100%; text-align: left }
"""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'"
)  # the browser asks no other machine for anything
BESIDES = 2**20  # bytes of a request beside the picture that it may hold


class OwnContentOnly:
    """Tells the browser, with every answer, to fetch nothing from elsewhere."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, with_policy)


class BoundedRequests:
    """Answers 413 to a request whose body says that it is longer than `limit` bytes, and cuts off one that does not."""

    def __init__(self, app: Callable, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        told = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if int(told) > self.limit:
            await PlainTextResponse("the request is too long", status_code=413)(scope, receive, send)
            return
        received = 0

        async def bounded() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.limit else {"type": "http.disconnect"}

        await self.app(scope, bounded, send)


def serve(page: gr.Blocks, host: str, port: int, upload_mb: int) -> str:
    """Start serving in the background -> the address. Raises InputError for a port that is taken."""
    font = ["system-ui", "sans-serif"]
    bounds = Middleware(BoundedRequests, limit=upload_mb * 2**20 + BESIDES)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=f"{upload_mb}mb",
            css=STYLE,
            theme=gr.themes.Default(font=font, font_mono=["monospace"]),
            app_kwargs={"middleware": [Middleware(OwnContentOnly), bounds]},
        )
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error}") from None
    return address
