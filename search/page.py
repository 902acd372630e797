"""Serve a page to search an index: sentences and pictures in, thumbnails out; and heat maps over scenes.

    python -m search.page --index INDEX.db [--port 7860]

It works without network and listens on 127.0.0.1 unless told otherwise. Whatever comes from the page is data: sentences
and uploads are bounded, only pictures of the index are shown, and no text becomes markup. Gradio serves copies that it
makes of what is shown, never the user's folder. GRADIO_ROOT_PATH is the path of the page behind a proxy.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware

from search import query
from search.localise import STRENGTH, SceneVectors, encode_scene, overlay
from search.pictures import PICTURES, picture_size
from search.rasters import SUFFIXES, open_scene
from search.store import Hit, Index, Record, open_index
from search.windows import SCALES, selo_windows
from util.device import pick_device
from util.encoder import LONGEST, Encoder
from util.images import formats
from util.lists import safe_paths
from utils import InputError, Parser, describe, printable, run_command, write_json, write_text

logger = logging.getLogger("galr")

PAGE = 20  # answers at a time
MOST = 1000  # answers in all
FOLD = 0.98  # the cosine from which pictures count as the same
THUMBNAIL = 256  # pixels
PICTURE = 1024  # pixels: the longer side of a heat map
WINDOWS = 20_000  # of an uploaded scene, at most
PRIVATE = {"api_visibility": "private"}
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


class Question(NamedTuple):
    """Hold what was asked: its vector (D,), in words, what narrows it, `query.ask`'s `fold`, and how many to show."""

    vector: np.ndarray
    words: str
    within: str
    fold: float | None
    top: int = PAGE


class Site:
    """Answer what the page asks, from an index and the model that made it; folder: for files to download."""

    def __init__(self, index: Index, encoder: Encoder, folder: Path) -> None:
        self.index, self.encoder, self.folder, self.mark = index, encoder, folder, index.mark
        self.scenes = sorted({record.path for record in index.records() if record.windows > 1})
        self.rules = query.raster_rules_of(self.mark)
        self.encoded = functools.lru_cache(maxsize=4)(lambda path, _: encode_scene(encoder, path, self.rules))

    def ask(self, sentence: str, upload: str | None, within: str = "", fold: float | None = None) -> Question:
        """Ask with a sentence, a picture, or both. Raises InputError."""
        sentence = sentence.strip()
        vector = query.question_vector(self.encoder, self.mark, sentence, upload)
        unknown = self.encoder.unknown_words(sentence) if sentence else []
        words = sentence + (f" (the model does not know: {', '.join(unknown)})" if unknown else "")
        asked = [words] * bool(words) + ["what looks like the picture"] * bool(upload)
        return Question(vector, ", and ".join(asked), within, fold)

    def like(self, record: Record, question: Question) -> Question:
        """Ask for pictures like one of the index. Raises InputError."""
        found = [vector for other, vector in self.index.find(record.path) if other.key == record.key]
        if not found:
            raise InputError(f"{record} is no longer in the index")
        return question._replace(vector=found[0], words=f"what looks like {record}", top=PAGE)

    def thumbnail(self, record: Record) -> Image.Image:
        """Return a picture or window of the index, small; grey where its file is gone or damaged."""
        try:
            with open_scene(safe_paths(self.mark.images, [record.path])[0], self.rules) as scene:
                image = scene.read(record.window)
        except (InputError, OSError):
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    def files(self, answers: list[Hit], session: str) -> list[str]:
        """Write the answers as CSV and as GeoJSON, in files of this session."""
        name = self.folder / hashlib.sha256(session.encode()).hexdigest()[:16] / "answers"
        write_text(name.with_suffix(".csv"), query.to_csv(answers))
        write_json(name.with_suffix(".geojson"), query.to_geojson(answers))
        return [f"{name}.csv", f"{name}.geojson"]

    def heat(self, name: str | None, upload: str | None, sentence: str) -> tuple[Image.Image, np.ndarray]:
        """Return a scene, uploaded or else of the index, reduced, and the map (H, W) uint8 of a sentence over it."""
        if not upload and name not in self.scenes:
            raise InputError("choose a scene of the index, or upload one")
        path = Path(upload or safe_paths(self.mark.images, [name])[0])
        vector = self.encoder.sentences([sentence])[0]
        self.encoder.unknown_words(sentence)  # one of which nothing is known is refused
        width, height = picture_size(path, self.rules)
        if upload:
            if len(selo_windows(height, width, SCALES)) > WINDOWS:
                raise InputError("this scene is too large for the page; use python -m search.localise")
            found = self.encoded(path, path.stat().st_mtime_ns)
        else:
            records, vectors = zip(*self.index.find(name), strict=True)
            found = SceneVectors(height, width, np.array([one.window for one in records]), np.stack(vectors))
        with open_scene(path, self.rules) as scene:
            picture = scene.overview(PICTURE)
        grey = Image.fromarray(found.map_of(vector)).resize(picture.size, Image.Resampling.BILINEAR)
        return picture, np.asarray(grey)


# ---------------------------------------------------------------- the page


def build_page(site: Site) -> gr.Blocks:
    """Build the page of a site. Messages go into text fields, which show markup as it is written."""
    with gr.Blocks(title="GaLR search", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Tab("Search"):
            _search_tab(site)
        with gr.Tab("Scene"):
            _scene_tab(site)
    return page


def _question_fields() -> tuple[list[Any], list[Any]]:
    """Lay out the fields of a question; return them, and the events that ask it."""
    with gr.Row():
        with gr.Column(scale=2):
            sentence = gr.Textbox(label="Sentence", max_length=LONGEST, elem_id="sentence", autofocus=True)
            search = gr.Button("Search", variant="primary", elem_id="search")
            with gr.Row():
                folder = gr.Textbox(label="Only in the folder", max_length=LONGEST, elem_id="folder")
                fold = gr.Checkbox(label="Hide near-duplicates", elem_id="fold")
            with gr.Row():
                area = gr.Textbox(label="Only within west, south, east, north (degrees)", max_length=99, elem_id="area")
                since = gr.Textbox(label="Only files from (2024-12-31)", max_length=10, elem_id="since")
                until = gr.Textbox(label="to", max_length=10, elem_id="until")
        upload = gr.Image(label="or a picture", type="filepath", sources=["upload"], height=260, elem_id="upload")
    fields = [sentence, upload, fold, folder, area, since, until]
    return fields, [search.click, sentence.submit, upload.upload]


def _search_tab(site: Site) -> None:
    question, records = gr.State(None), gr.State([])
    fields, events = _question_fields()
    status = gr.Textbox(label="Answers (click one for what is like it)", interactive=False, elem_id="status")
    grid = {"columns": 5, "object_fit": "contain", "allow_preview": False, "buttons": [], "interactive": False}
    gallery = gr.Gallery(show_label=False, elem_id="gallery", **grid)
    with gr.Row():
        more = gr.Button("More", elem_id="more")
        as_csv = gr.DownloadButton("CSV", elem_id="csv")
        as_geojson = gr.DownloadButton("GeoJSON", elem_id="geojson")
    shown = [gallery, status, as_csv, as_geojson, question, records]
    errors_in_status = _errors_in(status, shown)

    def show(asked: Question, request: gr.Request) -> tuple:
        found = query.ask(site.index, asked.vector, asked.top, asked.within, asked.fold)
        captions = (f"{rank} · {hit.score:.4f} · {hit}" for rank, hit in enumerate(found, start=1))
        tiles = [(site.thumbnail(hit.record), caption) for hit, caption in zip(found, captions, strict=True)]
        files = site.files(found, request.session_hash or "")
        records = [hit.record for hit in found]
        return tiles, f"{len(found)} for: {printable(asked.words)}", *files, asked, records

    @errors_in_status
    def by_question(
        text: str, picture: str, hide: bool, where: str, bounds: str, first: str, last: str, request: gr.Request
    ) -> tuple:
        within = query.narrowed(where, bounds.replace(",", " ").split(), first.strip(), last.strip())
        return show(site.ask(text, picture, within, FOLD if hide else None), request)

    @errors_in_status
    def extend(asked: Question | None, request: gr.Request) -> tuple:
        if asked is None:
            raise InputError("ask something first")
        return show(asked._replace(top=min(asked.top + PAGE, MOST)), request)

    @errors_in_status
    def alike(event: gr.SelectData, asked: Question, records: list[Record], request: gr.Request) -> tuple:
        return show(site.like(records[int(event.index)], asked), request)

    gr.on(events, by_question, fields, shown, **PRIVATE)
    more.click(extend, [question], shown, **PRIVATE)
    gallery.select(alike, [question, records], shown, **PRIVATE)


def _scene_tab(site: Site) -> None:
    heat = gr.State(None)
    with gr.Row():
        scenes = [(printable(name), name) for name in site.scenes]
        name = gr.Dropdown(scenes, label="Scene of the index", value=None, elem_id="scene")
        types = [*SUFFIXES, *PICTURES]
        upload = gr.File(label="or a file", file_types=types, type="filepath", height=120, elem_id="scene_upload")
    sentence = gr.Textbox(label="Sentence", max_length=LONGEST, elem_id="scene_sentence")
    with gr.Row():
        locate = gr.Button("Find the place", variant="primary", elem_id="locate")
        strength = gr.Slider(0, 1, STRENGTH, label="Strength of the map", elem_id="strength")
    status = gr.Textbox(label="Scene", interactive=False, elem_id="scene_status")
    picture = gr.Image(label="Map", interactive=False, buttons=["download"], elem_id="map")
    shown = [picture, status, heat]

    @_errors_in(status, shown)
    def by_map(scene: str | None, file: str | None, text: str, share: float) -> tuple:
        found = site.heat(scene, file, text)
        return overlay(*found, share), "the redder, the more like the sentence", found

    def change(found: tuple | None, share: float) -> Any:
        return overlay(*found, share) if found else None

    gr.on([locate.click, sentence.submit], by_map, [name, upload, sentence, strength], shown, **PRIVATE)
    strength.change(change, [heat, strength], picture, show_progress="hidden", **PRIVATE)


def _errors_in(status: gr.Textbox, outputs: list[Any]) -> Callable:
    """Return a decorator that shows an error in `status`, and leaves the other outputs as they are."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def told(*arguments: Any) -> tuple:
            try:
                return function(*arguments)
            except Exception as error:  # of Milvus, too
                message = f"error: {printable(describe(error)[0])}"
                return tuple(message if one is status else gr.skip() for one in outputs)

        return told

    return decorate


# ---------------------------------------------------------------- serving


class Guard:
    """Cut a request off that is longer than `limit` bytes; add our headers to all answers."""

    def __init__(self, app: Callable, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        received = 0

        async def bounded() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.limit else {"type": "http.disconnect"}

        async def with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, bounded, with_headers)


def serve(page: gr.Blocks, host: str, port: int, upload_mb: int) -> str:
    """Start serving in the background and return the address. Raises InputError for a port that is taken."""
    for name in Image.OPEN.keys() - set(formats()):
        del Image.OPEN[name]  # Gradio opens uploads by Pillow: a format of programs (EPS) is none of ours
        Image.ID.remove(name)
    guard = Middleware(Guard, limit=upload_mb * 2**20 + BESIDES)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none of the network
    quiet = {"quiet": True, "share": False, "enable_monitoring": False, "ssr_mode": False, "footer_links": []}
    place = {"server_name": host, "server_port": port, "prevent_thread_lock": True}
    limits = {"max_file_size": f"{upload_mb}mb", "app_kwargs": {"middleware": [guard]}}
    try:
        return page.launch(css=STYLE, theme=theme, **quiet, **place, **limits)[1]
    except OSError as error:
        reason = str(error).partition(".")[0]
        raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from None


def main() -> None:
    arguments = _parse()
    with open_index(arguments.index) as index, tempfile.TemporaryDirectory(prefix="galr_") as folder:
        encoder = query.encoder_of(index.mark, arguments.resume, pick_device(arguments.device))
        page = build_page(Site(index, encoder, Path(folder)))
        logger.info(f"open {serve(page, arguments.host, arguments.port, arguments.upload_mb)}; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.page", description="Serve a page to search an index, for this machine.")
    query.add_index(parser)
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone; 0.0.0.0: everyone")
    parser.add_argument("--upload_mb", type=int, default=20, help="largest upload in megabytes (default 20)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
