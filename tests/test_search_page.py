"""search.page in a real browser: sentences, pictures, scenes; nothing from elsewhere, nothing out of the index."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from bench import peak_mib
from search import index as index_command
from search.page import Site, build_page, serve
from search.query import encoder_of
from search.store import open_index
from tests.conftest import shortened
from tests.searching import SENTENCE
from utils import InputError, exit_status

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
BOTH = ", and what looks like the picture"
WIDE = [False, "", "", "", ""]  # duplicates hidden, folder, area, first and last day
PORT = 7000 + os.getpid() % 2000
MARKUP = "<img src=x onerror=document.title='executed'>.png"
MULTIPART = "multipart/form-data; boundary=x"


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
        encoder = encoder_of(opened.mark, None, torch.device("cpu"))
        yield Site(opened, encoder, work)


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """Serve the page, and return its address."""
    page = build_page(site)
    yield serve(page, "127.0.0.1", PORT, upload_mb=1)
    page.close(verbose=False)


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Start a Chromium without a screen, which notes every request."""
    if not (BROWSER.exists() and DRIVER.exists()):
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    flags += f" disable-component-update disable-dev-shm-usage window-size=1280,1400 user-data-dir={tmp_path}/profile"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def test_a_person_searches_and_finds_a_place(address, browser, demo):
    def all_of(selector: str) -> list[WebElement]:
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def one(selector: str) -> WebElement:
        return browser.find_element(By.CSS_SELECTOR, selector)

    def field(name: str) -> WebElement:
        return one(f"#{name} textarea, #{name} input")

    def status() -> str:
        return field("status").get_attribute("value")

    def until(what: Callable[[], object]) -> object:
        """Wait until something is so; the page may replace an element in the middle of it."""
        return WebDriverWait(browser, 60, ignored_exceptions=(WebDriverException,)).until(lambda _: what())

    def shoot(name: str) -> None:
        if folder := os.environ.get("GALR_SCREENSHOTS"):
            browser.save_screenshot(f"{folder}/{name}.png")

    browser.get(address)
    until(lambda: field("sentence").is_displayed())
    field("sentence").send_keys(SENTENCE)
    one("#search").click()
    until(lambda: status().startswith("20 for: there are two"))
    until(lambda: len([image for image in all_of("#gallery img") if image.get_property("naturalWidth")]) == 20)
    one("#more").click()
    until(lambda: status().startswith("40 for:") and len(all_of("#gallery img")) == 40)
    shoot("search")
    browser.execute_script("arguments[0].closest('button').click()", one("#gallery img"))
    until(lambda: "what looks like" in status())

    field("sentence").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    one("#upload input[type=file]").send_keys(str(demo / "data/images/demo_0007.png"))
    until(lambda: status() == "20 for: what looks like the picture")
    assert "1 · 1.0000 · demo_0007.png" in one("#gallery").text
    field("sentence").send_keys(SENTENCE)
    field("area").send_keys("-180 -90 180 90")
    one("#search").click()
    until(lambda: status().startswith(f"0 for: {SENTENCE}") and status().endswith(BOTH))  # none has a place

    next(tab for tab in all_of("button[role=tab]") if tab.text == "Scene").click()
    until(lambda: one("#scene input").is_displayed())
    one("#scene input").click()
    until(lambda: all_of("[role=option]"))[0].click()
    field("scene_sentence").send_keys(SENTENCE)
    one("#locate").click()
    until(lambda: one("#map img").get_property("naturalWidth") == 400)
    before = one("#map img").get_attribute("src")
    browser.execute_script(
        "const s = arguments[0]; s.value = 1; for (const kind of ['input', 'pointerup'])"
        "s.dispatchEvent(new Event(kind, {bubbles: true}))",
        one("#strength input[type=range]"),
    )
    until(lambda: one("#map img").get_attribute("src") != before)
    shoot("scene")

    assert browser.title == "GaLR search"  # the name of a picture is markup that would change it
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 5
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))} == set()


# ---------------------------------------------------------------- without one


def fetch(url: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, {"Content-Type": kind} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(address: str, name: str, content: bytes) -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return fetch(f"{address}gradio_api/upload", head + content + b"\r\n--x--\r\n", MULTIPART)


def uploaded(address: str, name: str, content: bytes) -> dict:
    """Send a file as the page does, and return how its functions are told of it."""
    [path] = json.loads(upload(address, name, content)[1])
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@functools.cache
def functions(address: str) -> dict[str, int]:
    config = json.loads(fetch(f"{address}config")[1])
    return {one["api_name"]: one["id"] for one in config["dependencies"]}


def call(address: str, function: str, *data: object) -> str:
    """Return what a function of the page answers to raw data, as a hostile client would send them."""
    session = f"s{time.time_ns()}"
    body = json.dumps({"data": data, "fn_index": functions(address)[function], "session_hash": session}).encode()
    code, content = fetch(f"{address}gradio_api/queue/join", body)
    if code != 200:
        return f"error {code} {content[:200]!r}"
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=20) as stream:
        return next((line.decode() for line in stream if b"process_completed" in line), "")


def answers(address: str, *data: object) -> tuple[str, list[str], list[str]]:
    """Return what the page answers to a question: the status line, the captions, the lines of the CSV file."""
    found = json.loads(call(address, "by_question", *data).removeprefix("data:"))["output"]["data"]
    tiles, status, as_csv = found[:3]
    if status.startswith("error"):
        return status, [], []
    assert all(url.startswith(address) and fetch(url)[0] == 200 for url in (tile["image"]["url"] for tile in tiles))
    table = list(csv.reader(io.StringIO(fetch(as_csv["url"])[1].decode())))
    return status, [tile["caption"] for tile in tiles], table[1:]


def test_no_path_leaves_the_index_uploads_are_bounded_and_hostile_data_refused(address):
    for path in ("/etc/passwd", "tiny.yaml", "data/images/demo_0000.png", "../../etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/stream/"):
            assert fetch(f"{address}{route}{path}")[0] in (403, 404, 405), (route, path)
    assert upload(address, "a.png", b"0" * 1_050_000)[0] == 413
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert '"success":true' in call(address, "by_question", SENTENCE, None, *WIDE).replace(" ", "")
    for function, *data in (
        ("by_question", "", stolen, *WIDE),
        ("by_map", "../../tiny.yaml", None, SENTENCE, 0.5),
        ("by_map", None, stolen, SENTENCE, 0.5),
        ("by_question", "x" * 100_000, None, *WIDE),
        ("by_question", "<script>1</script>", None, *WIDE),
    ):
        answer = call(address, function, *data)
        assert "root:" not in answer and "Traceback" not in answer
        assert "error" in answer or '"success":false' in answer.replace(" ", ""), answer


def test_a_sentence_of_a_gigabyte_is_cut_off_and_not_kept(address):
    netloc = urllib.parse.urlsplit(address).netloc
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\n"
    before, piece = peak_mib(), b"%x\r\n%s\r\n" % (2**20, b"a" * 2**20)
    with socket.create_connection(netloc.split(":"), timeout=20) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                connection.sendall(piece)
            connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert peak_mib() < before + 100
    assert fetch(f"{address}config")[0] == 200  # it lives


def test_the_page_asks_as_it_is_told_and_escapes_names(address):
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400))
    status, captions, table = answers(address, SENTENCE, None, False, "odd", "", day, "")
    assert status.startswith(f"1 for: {SENTENCE}") and len(table) == 1
    assert [caption.split(" · ")[2] for caption in captions] == ["odd/\\x1b[2Jred\\u202e\\n.png"]
    assert answers(address, SENTENCE, None, False, "odd", "", "", day)[0].startswith("0 for")
    assert answers(address, SENTENCE, None, False, "", "14,45 15,46", "", "")[0].startswith("0 for")  # none has a place
    picture = uploaded(address, "a.png", Path("data/images/demo_0003.png").read_bytes())
    status, captions, table = answers(address, SENTENCE, picture, *WIDE)
    assert status.startswith(f"20 for: {SENTENCE}") and status.endswith(BOTH) and len(captions) == len(table) == 20
    for narrow, says in ((["9 9 9", "", ""], "bounds"), (["a b c d", "", ""], "bounds"), (["", "1.5.24", ""], "a day")):
        assert says in answers(address, SENTENCE, None, False, "", *narrow)[0]
    assert "the sentence is empty" in answers(address, " ", None, *WIDE)[0]


def test_a_sentence_and_a_picture_ask_for_the_middle_of_both(site):
    path = "data/images/demo_0003.png"
    sentence, picture, both = (site.ask(*one).vector for one in ((SENTENCE, None), ("", path), (SENTENCE, path)))
    np.testing.assert_allclose(both, (sentence + picture) / np.linalg.norm(sentence + picture), atol=1e-6)


def test_a_port_that_is_taken_is_named(address):
    with gr.Blocks() as page, pytest.raises(InputError, match="choose another --port"):
        serve(page, "127.0.0.1", urllib.parse.urlsplit(address).port, 1)


def test_an_upload_that_is_a_program_is_not_run(address, monkeypatch):
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments))
    program = uploaded(address, "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    call(address, "by_question", "", program, *WIDE)
    assert "error" in call(address, "by_map", None, program, SENTENCE, 0.5)
    assert not started
