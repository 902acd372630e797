"""Take docs/figures/search_page.png: a sentence asked of UCM's test pictures, on a page that serves them.

    python -m search.index --images UCM_TEST_PICTURES --out ucm.db && python -m search.page --index ucm.db --port 7861 &
    python -m docs.figures.page http://127.0.0.1:7861 "boats moored side by side in a harbor"

Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

OUT = Path(__file__).with_name("search_page.png")
FLAGS = "headless=new no-sandbox disable-gpu disable-dev-shm-usage hide-scrollbars window-size=1280,1000"


def main(address: str, sentence: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    wait = WebDriverWait(browser, 120)
    browser.get(address)
    field = wait.until(lambda _: browser.find_element(By.CSS_SELECTOR, "#sentence textarea, #sentence input"))
    field.send_keys(sentence)
    browser.find_element(By.ID, "search").click()
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#gallery img")) >= 20)
    time.sleep(3)  # thumbnails are drawn
    browser.save_screenshot(str(OUT))
    browser.quit()
    image = Image.open(OUT).convert("RGB")
    image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS).quantize(128).save(OUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
