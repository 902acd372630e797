"""search.page in a real browser: sentences, pictures, scenes; nothing from elsewhere, nothing out of the index."""

from __future__ import annotations

import contextlib
import csv
import http.server
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="pip install -r requirements-search.txt")
pytest.importorskip("pymilvus", reason="pip install -r requirements-search.txt")
pytest.importorskip("selenium", reason="pip install -r requirements-search.txt")

import gradio as gr
import rasterio
import torch
from PIL import EpsImagePlugin, Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from bench import peak_mib
from search import index as index_command
from search.page import Site, build_page
from search.query import encoder_of
from search.server import serve
from search.store import open_index, read_mark
from search.within import Within
from tests.conftest import shortened
from utils import InputError, exit_status

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
SENTENCE = "there are two red vehicles in the road"
BOTH = ", and what looks like the picture"
NARROW = [False, "", "", "", ""]  # duplicates hidden, folder, area, first and last day
PORT = 7000 + os.getpid() % 2000
MARKUP = "<img src=x onerror=document.title='executed'>.png"
needs_browser = pytest.mark.skipif(
    not (BROWSER.exists() and DRIVER.exists()), reason="no chromium: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def site(demo: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Index 22 pictures and one scene of 24 windows."""
    work = tmp_path_factory.mktemp("page") / "work"
    shutil.copytree(demo, work)
    images = work / "data/images"
    shutil.copy(images / "demo_0000.png", images / MARKUP)
    (images / "odd").mkdir()
    shutil.copy(images / "demo_0001.png", images / "odd/\x1b[2Jred\u202e\n.png")
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3)).astype(np.uint8)
    Image.fromarray(noise).save(images / "scene.jpg")
    with shortened(), pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(work)
        command = f"--path_opt tiny.yaml --resume {checkpoint} --images {images} --out i.db --regions none"
        patch.setattr(sys, "argv", ["index", *command.split(), *"--scales 128 --workers 0 --device cpu".split()])
        assert exit_status(index_command.main) == 0
        opened = stack.enter_context(open_index("i.db"))
        encoder = encoder_of(read_mark(opened), None, torch.device("cpu"))
        yield Site(opened, encoder, work)


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """Serve the page, and return its address."""
    page = build_page(site)
    yield serve(page, "127.0.0.1", PORT, upload_mb=1)
    page.close(verbose=False)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Start Debian's chromium without a screen, which notes every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1280,1400",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def until(browser: webdriver.Chrome, what: Callable[[], object], seconds: float = 30) -> object:
    """Wait until something is so; the page may replace an element in the middle of it."""
    wait = WebDriverWait(browser, seconds, ignored_exceptions=(WebDriverException,))
    return wait.until(lambda _: what())


@needs_browser
def test_a_person_searches_and_finds_a_place(address: str, browser: webdriver.Chrome, demo: Path) -> None:
    def one(selector: str):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def thumbnails() -> list:
        return browser.find_elements(By.CSS_SELECTOR, "#gallery img")

    def status(name: str = "status") -> str:
        return one(f"#{name} textarea, #{name} input").get_attribute("value")

    browser.get(address)
    until(browser, lambda: one("#sentence textarea, #sentence input").is_displayed())
    one("#sentence textarea, #sentence input").send_keys(SENTENCE)
    one("#search").click()
    until(browser, lambda: status().startswith("20 for: there are two"))
    until(
        browser, lambda: len(thumbnails()) == 20 and all(image.get_property("naturalWidth") for image in thumbnails())
    )

    one("#more").click()
    until(browser, lambda: status().startswith("40 for:") and len(thumbnails()) == 40)
    if folder := os.environ.get("GALR_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/search.png")

    browser.execute_script("arguments[0].click()", thumbnails()[0].find_element(By.XPATH, "./ancestor::button"))
    until(browser, lambda: "what looks like" in status())

    one("#sentence textarea, #sentence input").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    one("#upload input[type=file]").send_keys(str(demo / "data/images/demo_0007.png"))
    until(browser, lambda: status() == "20 for: what looks like the picture")
    assert "1 · 1.0000 · demo_0007.png" in one("#gallery").text
    one("#sentence textarea, #sentence input").send_keys(SENTENCE)
    one("#area textarea, #area input").send_keys("-180 -90 180 90")
    one("#search").click()
    until(browser, lambda: status().startswith(f"0 for: {SENTENCE}") and status().endswith(BOTH))  # none has a place

    for tab in browser.find_elements(By.CSS_SELECTOR, "button[role=tab]"):
        if tab.text == "Scene":
            tab.click()
    until(browser, lambda: one("#scene input").is_displayed())
    one("#scene input").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "[role=option]"))[0].click()
    one("#scene_sentence textarea, #scene_sentence input").send_keys(SENTENCE)
    one("#locate").click()
    until(browser, lambda: one("#map img").get_property("naturalWidth") == 400, 60)
    before = one("#map img").get_attribute("src")
    browser.execute_script(
        "const s = arguments[0]; s.value = 1; s.dispatchEvent(new Event('input', {bubbles: true}));"
        "s.dispatchEvent(new Event('pointerup', {bubbles: true}))",
        one("#strength input[type=range]"),
    )
    until(browser, lambda: one("#map img").get_attribute("src") != before)
    if folder:
        browser.save_screenshot(f"{folder}/scene.png")

    assert browser.title == "GaLR search"  # the name of a picture is markup that would change it
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 5
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))} == set()


def fetch(url: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, {"Content-Type": kind} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_path_leaves_the_index_and_uploads_are_bounded(address: str) -> None:
    for path in ("/etc/passwd", "tiny.yaml", "data/images/demo_0000.png", "../../etc/passwd", "/proc/self/environ"):
        for route in ("gradio_api/file=", "file=", "gradio_api/stream/"):
            code, content = fetch(f"{address}{route}{path}")
            assert code in (403, 404, 405), (route, path, code)
            assert b"root:" not in content and b"PATH=" not in content
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + b"0" * 2_000_000
        + b"\r\n--x--\r\n"
    )
    assert fetch(f"{address}gradio_api/upload", part, "multipart/form-data; boundary=x")[0] == 413


def test_a_sentence_of_a_gigabyte_is_refused_and_not_kept(address: str) -> None:
    netloc = urllib.parse.urlsplit(address).netloc
    host, port = netloc.split(":")
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as told:
        told.sendall(f"{head}Content-Length: {2**30}\r\n\r\n{{".encode())
        assert b" 413 " in told.recv(100)

    before, piece = peak_mib(), b"%x\r\n%s\r\n" % (2**20, b"a" * 2**20)  # in pieces, so that its length is not told
    with socket.create_connection((host, int(port)), timeout=20) as untold:
        untold.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                untold.sendall(piece)
            untold.sendall(b"0\r\n\r\n")
        assert untold.recv(100).startswith(b"HTTP/1.1 4")
    assert peak_mib() < before + 100
    assert fetch(f"{address}config")[0] == 200  # it lives


def call(address: str, function: int, data: list) -> str:
    """Return what the page's function of this number answers to raw data, as a hostile client would send them."""
    session = f"s{time.time_ns()}"
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    code, content = fetch(f"{address}gradio_api/queue/join", body)
    if code != 200:
        return f"{code} {content[:200]!r}"
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=20) as stream:
        for line in stream:
            if b"process_completed" in line:
                return line.decode()
    return ""


def test_control_characters_of_a_name_are_escaped_on_the_page(address: str) -> None:
    config = json.loads(fetch(f"{address}config")[1])
    ids = {one["api_name"]: one["id"] for one in config["dependencies"]}
    event = call(address, ids["by_question"], [SENTENCE, None, False, "odd", "", "", ""])
    gallery = json.loads(event.removeprefix("data:"))["output"]["data"][0]
    assert [one["caption"].split(" · ")[2] for one in gallery] == ["odd/\\x1b[2Jred\\u202e\\n.png"]


def asked(address: str, *data: object) -> tuple[str, dict[str, float], list[str]]:
    """Return what the page answers to a question: the status line, paths with scores of the CSV file, the captions."""
    config = json.loads(fetch(f"{address}config")[1])
    ids = {one["api_name"]: one["id"] for one in config["dependencies"]}
    found = json.loads(call(address, ids["by_question"], list(data)).removeprefix("data:"))["output"]["data"]
    tiles, status, as_csv = found[:3]
    if status.startswith("error"):
        return status, {}, []
    assert all(url.startswith(address) and fetch(url)[0] == 200 for url in (tile["image"]["url"] for tile in tiles))
    rows = csv.reader(io.StringIO(fetch(as_csv["url"])[1].decode()))
    scores = {path: float(score) for _, score, path, *_ in list(rows)[:0:-1]}  # the best window of a scene
    return status, scores, [tile["caption"] for tile in tiles]


def test_the_page_narrows_by_folder_area_and_day(address: str) -> None:
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400))
    status, scores, captions = asked(address, SENTENCE, None, False, "odd", "", day, "")
    assert status.startswith(f"1 for: {SENTENCE}") and len(captions) == len(scores) == 1
    assert asked(address, SENTENCE, None, False, "odd", "", "", day)[0].startswith("0 for")
    assert asked(address, SENTENCE, None, False, "", "14,45 15,46", "", "")[0].startswith("0 for")  # none has a place
    for narrow, says in ((["9 9 9", "", ""], "bounds"), (["a b c d", "", ""], "bounds"), (["", "1.5.24", ""], "a day")):
        assert says in asked(address, SENTENCE, None, False, "", *narrow)[0]


def test_the_page_asks_with_a_sentence_and_a_picture_together(address: str, site: Site) -> None:
    path = Path("data/images/demo_0003.png")
    status, found, captions = asked(address, SENTENCE, upload(address, "a.png", path.read_bytes()), *NARROW)
    assert status.startswith(f"20 for: {SENTENCE}") and status.endswith(BOTH) and len(captions) == 20
    vectors = [site.ask(text, image, Within(), False).vector for text, image in ((SENTENCE, None), ("", str(path)))]
    middle = np.sum(vectors, axis=0) / np.linalg.norm(np.sum(vectors, axis=0))
    scores: dict[str, float] = {}
    for record, vector in site.index.rows(vectors=True):
        scores[record.path] = max(float(vector @ middle), scores.get(record.path, -1))
    assert found == pytest.approx({name: scores[name] for name in found}, abs=1e-4)
    assert max(scores, key=scores.get) in found and all(abs(vector @ middle) < 0.99 for vector in vectors)
    assert "the sentence is empty" in asked(address, " ", None, *NARROW)[0]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Pass what lies under /galr on to the page at PORT + 2000, as a server in front of it does."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        if not self.path.startswith("/galr/"):
            self.send_error(404)
            return
        url = f"http://127.0.0.1:{PORT + 2000}{self.path.removeprefix('/galr')}"
        kept = {name: value for name, value in self.headers.items() if name in ("Host", "Content-Type", "Cookie")}
        with urllib.request.urlopen(urllib.request.Request(url, body, kept), timeout=20) as answer:
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_the_page_works_under_a_path_behind_a_proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/galr")
    page = build_page(site)
    serve(page, "127.0.0.1", PORT + 2000, upload_mb=1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public = f"http://127.0.0.1:{server.server_port}/galr/"
        html = fetch(public)[1].decode()
        assert f'"root":"{public.rstrip("/")}"' in html.replace(" ", "")
        picture = upload(public, "a.png", Path("data/images/demo_0003.png").read_bytes())
        status, scores, captions = asked(public, SENTENCE, picture, *NARROW)
        assert status.startswith("20 for") and len(captions) == 20 and scores
        server.shutdown()
    page.close(verbose=False)


def test_a_port_that_is_taken_is_named(address: str) -> None:
    with gr.Blocks() as page, pytest.raises(InputError, match="choose another --port"):
        serve(page, "127.0.0.1", urllib.parse.urlsplit(address).port, 1)


def upload(address: str, name: str, content: bytes) -> dict:
    """Send a file as the page does, and return how its functions are told of it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = "multipart/form-data; boundary=x"
    [path] = json.loads(fetch(f"{address}gradio_api/upload", head + content + b"\r\n--x--\r\n", kind)[1])
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_an_upload_that_is_a_program_or_names_other_files_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments))
    config = json.loads(fetch(f"{address}config")[1])
    ids = {one["api_name"]: one["id"] for one in config["dependencies"]}
    program = upload(address, "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    call(address, ids["by_question"], ["", program, *NARROW])
    assert "error" in call(address, ids["by_map"], [None, program, SENTENCE, 0.5])
    assert not started
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, height=999, width=999, dtype="uint8") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/etc/passwd")
        file.write(np.zeros((1, 999, 999), np.uint8))
    scene = upload(address, "a.tif", (tmp_path / "a.tif").read_bytes())
    assert "names another file" in call(address, ids["by_map"], [None, scene, SENTENCE, 0.5])
    picture = upload(address, "a.png", (Path("data/images/demo_0003.png")).read_bytes())
    assert "demo_0003.png" in call(address, ids["by_question"], ["", picture, *NARROW])


def test_hostile_data_of_the_page_are_refused(address: str) -> None:
    config = json.loads(fetch(f"{address}config")[1])
    ids = {one["api_name"]: one["id"] for one in config["dependencies"]}
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert '"success":true' in call(address, ids["by_question"], [SENTENCE, None, *NARROW]).replace(" ", "")
    for answer in (
        call(address, ids["by_question"], ["", stolen, *NARROW]),
        call(address, ids["by_map"], ["../../tiny.yaml", None, SENTENCE, 0.5]),
        call(address, ids["by_map"], [None, stolen, SENTENCE, 0.5]),
        call(address, ids["by_question"], ["x" * 100_000, None, *NARROW]),
        call(address, ids["by_question"], ["<script>1</script>", None, *NARROW]),
    ):
        assert "root:" not in answer and "Traceback" not in answer
        assert "error" in answer or '"success":false' in answer.replace(" ", ""), answer
