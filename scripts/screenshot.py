"""Makes docs/page.png, the screenshot of the web page in README.md, from a running gateway with examples.

.venv/bin/pip install playwright   (make test-page installs it, and Chromium)
.venv/bin/python scripts/screenshot.py http://localhost:8080/
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parents[1] / "docs/page.png"
COLOURS = 64  # palette size: enough for text and the synthetic clips, at a third of the bytes
FRAMES = 8  # number of frames of the demo's checkpoint
QUESTIONS = ("What happens in the video?", "How many things are there?")

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1000, "height": 760})
    page.goto(sys.argv[1])
    page.get_by_role("button", name="Example 1", exact=True).click()
    for number, question in enumerate(QUESTIONS):
        page.get_by_label("Question").fill(question)
        page.keyboard.press("Enter")
        page.locator("#log .stages").nth(number).wait_for()
        page.locator("#ask:enabled").wait_for()
    page.locator("#frames li canvas").nth(FRAMES - 1).wait_for()
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    browser.close()
picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(TARGET, optimize=True)
print(TARGET, TARGET.stat().st_size, "bytes")
