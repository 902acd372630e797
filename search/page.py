"""A page to search an index: sentences and pictures in, thumbnails out; and heat maps over scenes.

    python -m search.page --index INDEX.db [--port 7860]

It works without network and listens on 127.0.0.1 unless told otherwise. What comes from the page is data: sentences and
uploads are bounded, only pictures of the index are shown, and nothing of it is put into the page as markup.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from search.answers import Answer, describe, to_csv, to_geojson
from search.encoder import LONGEST, Encoder
from search.local import LocalRules
from search.localise import STRENGTH, SceneVectors, encode_scene, overlay
from search.pictures import PICTURES
from search.query import ask, encoder_of, image_vector, open_query
from search.rasters import SUFFIXES, RasterRules, open_scene
from search.server import serve
from search.store import Index, Mark, Record, open_index, read_mark
from search.windows import SCALES, selo_windows
from util.device import pick_device
from util.images import open_image, safe_paths
from util.lists import read_captions
from utils import InputError, Interrupted, Parser, RunError, run_command

logger = logging.getLogger("galr")

PAGE = 20  # answers at a time
MOST = 1000  # answers in all
FOLD = 0.98  # the cosine from which pictures count as the same
THUMBNAIL = 256  # pixels
PICTURE = 1024  # pixels: the longer side of a heat map
WINDOWS = 20_000  # of an uploaded scene, at most
EXAMPLES = 4


class Query(NamedTuple):
    """What was asked: its vector (D,), in words, and how many answers are wanted."""

    vector: np.ndarray
    words: str
    folder: str
    fold: bool
    top: int = PAGE


class Heat(NamedTuple):
    """A scene, reduced, and the map over it (h, w) uint8, of the same size."""

    picture: Image.Image
    grey: np.ndarray


class Site:
    """What the page shows: an index, the model that made it, the scenes in it."""

    def __init__(self, index: Index, encoder: Encoder, folder: Path) -> None:
        self.index, self.encoder, self.folder = index, encoder, folder
        self.mark: Mark = read_mark(index)
        self.scenes = sorted({record.path for record in index.records() if record.windows > 1})
        self.how = RasterRules(tuple(self.mark.bands) if self.mark.bands else None, self.mark.stretch)
        self.encoded = functools.lru_cache(maxsize=4)(self._encode)

    # ---------------------------------------------------------------- search

    def picture_query(self, upload: str | None, folder: str, fold: bool) -> Query:
        """What a picture asks. Raises InputError."""
        if not upload:
            raise InputError("there is no picture")
        vector = image_vector(self.encoder, self.mark, open_query(upload))
        return Query(vector, "what looks like the picture", folder, fold)

    def sentence_query(self, sentence: str, folder: str, fold: bool) -> Query:
        """What a sentence asks. Raises InputError."""
        vector = self.encoder.sentences([sentence])[0]
        unknown = self.encoder.unknown_words(sentence)
        words = sentence.strip() + (f" (the model does not know: {', '.join(unknown)})" if unknown else "")
        return Query(vector, words, folder, fold)

    def like(self, record: Record, query: Query) -> Query:
        """What asks for pictures like one of the index."""
        found = [vector for other, vector in self.index.find(record.path) if other.key == record.key]
        if not found:
            raise InputError(f"{describe(record)} is no longer in the index")
        return query._replace(vector=found[0], words=f"what looks like {describe(record)}", top=PAGE)

    def answers(self, query: Query) -> list[Answer]:
        """The best answers to a query."""
        return ask(self.index, query.vector, query.top, query.folder, None, FOLD if query.fold else None)

    def thumbnail(self, record: Record) -> Image.Image:
        """A picture or window of the index, small; grey where its file is gone or damaged."""
        try:
            path = Path(safe_paths(self.mark.images, [record.path])[0])
            if record.windows > 1 or path.suffix.lower() in SUFFIXES:
                with open_scene(path, self.how) as scene:
                    image = scene.read((record.top, record.bottom, record.left, record.right))
            else:
                image = open_image(path)
        except (InputError, OSError):
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    def files(self, answers: list[Answer], session: str) -> tuple[str, str]:
        """The answers as CSV and as GeoJSON, in files of this session."""
        folder = self.folder / hashlib.sha256(session.encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        (folder / "answers.csv").write_text(to_csv(answers), encoding="utf-8")
        (folder / "answers.geojson").write_text(json.dumps(to_geojson(answers)), encoding="utf-8")
        return str(folder / "answers.csv"), str(folder / "answers.geojson")

    def examples(self) -> list[str]:
        """Some captions of the data set that the model was trained for; none where its lists are not at hand."""
        try:
            captions = read_captions(self.mark.options["dataset"]["data_path"], "test")
        except (InputError, OSError):
            return []
        distinct = [one for one in dict.fromkeys(captions) if 0 < len(one) <= LONGEST]
        return [distinct[i] for i in np.linspace(0, len(distinct) - 1, min(EXAMPLES, len(distinct))).astype(int)]

    # ---------------------------------------------------------------- scenes

    def heat(self, name: str | None, upload: str | None, sentence: str) -> Heat:
        """The heat map of a sentence over an uploaded scene or, without one, a scene of the index."""
        if not upload and name not in self.scenes:
            raise InputError("choose a scene of the index, or upload one")
        path = Path(upload or safe_paths(self.mark.images, [name])[0])
        vector = self.encoder.sentences([sentence])[0]
        self.encoder.unknown_words(sentence)
        with open_scene(path, self.how) as scene:
            picture, height, width = scene.overview(PICTURE), scene.height, scene.width
        if upload:
            if len(selo_windows(height, width, SCALES)) > WINDOWS:
                raise InputError("this scene is too large for the page; use python -m search.localise")
            found = self.encoded(path, path.stat().st_mtime_ns)
        else:
            records, vectors = zip(*self.index.find(name), strict=True)
            windows = np.array([(one.top, one.bottom, one.left, one.right) for one in records])
            found = SceneVectors(height, width, windows, np.stack(vectors))
        grey = Image.fromarray(found.map_of(vector)).resize(picture.size, Image.Resampling.BILINEAR)
        return Heat(picture, np.asarray(grey))

    def _encode(self, path: Path, _: int) -> SceneVectors:
        return encode_scene(self.encoder, LocalRules.from_dict(self.mark.rules), path, self.how)


# ---------------------------------------------------------------- the page


def build_page(site: Site) -> gr.Blocks:
    """The page of a site. Messages go into text fields, which show markup as it is written."""
    with gr.Blocks(title="GaLR search", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Tab("Search"):
            _search_tab(site)
        with gr.Tab("Scene"):
            _scene_tab(site)
    return page


def _search_tab(site: Site) -> None:
    query, answers = gr.State(None), gr.State([])
    with gr.Row():
        with gr.Column(scale=2):
            sentence = gr.Textbox(label="Sentence", max_length=LONGEST, elem_id="sentence", autofocus=True)
            search = gr.Button("Search", variant="primary", elem_id="search")
            with gr.Row():
                folder = gr.Textbox(label="Only in the folder", max_length=LONGEST, elem_id="folder")
                fold = gr.Checkbox(label="Fold near-duplicates", elem_id="fold")
        upload = gr.Image(label="or a picture", type="filepath", sources=["upload"], height=260, elem_id="upload")
    if examples := site.examples():
        gr.Examples([[one] for one in examples], sentence, label="Examples", api_visibility="private")
    status = gr.Textbox(label="Answers (click one for what is like it)", interactive=False, elem_id="status")
    gallery = gr.Gallery(
        show_label=False,
        columns=5,
        object_fit="contain",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="gallery",
    )
    with gr.Row():
        more = gr.Button("More", elem_id="more")
        as_csv = gr.DownloadButton("CSV", elem_id="csv")
        as_geojson = gr.DownloadButton("GeoJSON", elem_id="geojson")
    shown = [gallery, status, as_csv, as_geojson, query, answers]

    @_told(status, shown)
    def show(asked: Query, request: gr.Request) -> tuple:
        found = site.answers(asked)
        tiles = [(site.thumbnail(one.record), _caption(one)) for one in found]
        files = site.files(found, request.session_hash or "")
        return tiles, f"{len(found)} for: {asked.words}", *files, asked, found

    def by_sentence(text: str, where: str, folded: bool, request: gr.Request) -> tuple:
        return show(lambda: site.sentence_query(text, where, folded), request)

    def by_picture(picture: str | None, where: str, folded: bool, request: gr.Request) -> tuple:
        return show(lambda: site.picture_query(picture, where, folded), request)

    def extend(asked: Query | None, request: gr.Request) -> tuple:
        return show(lambda: _asked(asked)._replace(top=min(asked.top + PAGE, MOST)), request)

    def alike(event: gr.SelectData, asked: Query | None, found: list[Answer], request: gr.Request) -> tuple:
        return show(lambda: site.like(found[int(event.index)].record, _asked(asked)), request)

    private = {"api_visibility": "private"}
    gr.on([search.click, sentence.submit], by_sentence, [sentence, folder, fold], shown, **private)
    upload.upload(by_picture, [upload, folder, fold], shown, **private)
    more.click(extend, [query], shown, **private)
    gallery.select(alike, [query, answers], shown, **private)


def _caption(answer: Answer) -> str:
    more = f" · and {len(answer.folded)} alike" if answer.folded else ""
    return f"{answer.rank} · {answer.score:.4f} · {describe(answer.record)}{more}"


def _asked(query: Query | None) -> Query:
    if query is None:
        raise InputError("ask something first")
    return query


def _scene_tab(site: Site) -> None:
    heat = gr.State(None)
    with gr.Row():
        name = gr.Dropdown(site.scenes, label="Scene of the index", value=None, elem_id="scene")
        types = [*SUFFIXES, *PICTURES]
        upload = gr.File(label="or a file", file_types=types, type="filepath", height=120, elem_id="scene_upload")
    sentence = gr.Textbox(label="Sentence", max_length=LONGEST, elem_id="scene_sentence")
    with gr.Row():
        locate = gr.Button("Find the place", variant="primary", elem_id="locate")
        strength = gr.Slider(0, 1, STRENGTH, label="Strength of the map", elem_id="strength")
    status = gr.Textbox(label="Scene", interactive=False, elem_id="scene_status")
    picture = gr.Image(label="Map", interactive=False, buttons=["download"], elem_id="map")

    @_told(status, [picture, status, heat])
    def show(found: Heat, share: float) -> tuple:
        return overlay(found.picture, found.grey, share), "the redder, the more like the sentence", found

    def by_map(scene: str | None, file: str | None, text: str, share: float) -> tuple:
        return show(lambda: site.heat(scene, file, text), share)

    def change(found: Heat | None, share: float) -> Any:
        return overlay(found.picture, found.grey, share) if found else None

    private = {"api_visibility": "private"}
    gr.on(
        [locate.click, sentence.submit], by_map, [name, upload, sentence, strength], [picture, status, heat], **private
    )
    strength.change(change, [heat, strength], picture, show_progress="hidden", **private)


def _told(status: gr.Textbox, outputs: list[Any]) -> Callable:
    """Lets a function take its first argument from a call, whose error, if it fails, is told in `status`."""

    def decorate(function: Callable) -> Callable:
        def told(get: Callable, *arguments: Any) -> tuple:
            try:
                return function(get(), *arguments)
            except (InputError, RunError) as error:
                return tuple(f"error: {error}" if one is status else gr.skip() for one in outputs)

        return told

    return decorate


def main() -> None:
    arguments = _parse()
    with open_index(arguments.index) as index, tempfile.TemporaryDirectory(prefix="galr_") as folder:
        encoder = encoder_of(read_mark(index), arguments.resume, pick_device(arguments.device))
        page = build_page(Site(index, encoder, Path(folder)))
        logger.info(f"open {serve(page, arguments.host, arguments.port, arguments.upload_mb)}; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, _stop)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _stop(signum: int, _: Any) -> None:
    raise Interrupted(signum, "stopped")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.page", description="A page to search an index, for this machine.")
    parser.add_argument("--index", required=True, help="a folder NAME.db, or the address of a Milvus server")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone; 0.0.0.0: everyone")
    parser.add_argument("--upload_mb", type=int, default=20, help="largest upload in megabytes (default 20)")
    parser.add_argument("--resume", metavar="CKPT", help="where the index's checkpoint is now, if it has moved")
    parser.add_device()
    arguments = parser.parse_args()
    if not 1 <= arguments.port <= 65535:
        raise InputError(f"--port {arguments.port}: from 1 to 65535")
    if arguments.upload_mb < 1:
        raise InputError(f"--upload_mb {arguments.upload_mb}: at least 1")
    return arguments


if __name__ == "__main__":
    run_command(main)
