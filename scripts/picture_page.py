"""Takes docs/page.png, the picture of the page at `/` in the README, of a server that runs the demo model.

    jaxinfer serve                                     # in another terminal
    python scripts/picture_page.py [--url http://localhost:8000]

Needs `pip install ".[test,browser]"` and a Chromium. The questions are asked for real; whatever the model says is
shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.serving.http.browser import chromium  # noqa: E402

PICTURE = ROOT / "docs" / "page.png"
EXAMPLE = "A tool: the weather in Paris"
QUESTIONS = (("What is 347 + 586?", "medium"), ("Tell me a story about a fox and a lantern.", ""))  # with an effort
SIZE = {"width": 900, "height": 770}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000")
    url = parser.parse_args().url
    with chromium() as browser:
        page: Any = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.locator("#status[data-state=ready]").wait_for()
        page.locator("#settings").evaluate("box => { box.open = true }")
        page.locator("#settings [name=temperature]").fill("0")
        page.keyboard.press("Escape")  # folds them
        page.locator("#examples button", has_text=EXAMPLE).click()
        page.locator("#send").wait_for()
        page.locator("#reset-forms").click()
        for question, effort in QUESTIONS:
            page.locator("#settings [name=reasoning_effort]").evaluate("(box, value) => { box.value = value }", effort)
            page.locator("#prompt").fill(question)
            page.locator("#send").click()
            page.locator("#send").wait_for()
        page.wait_for_timeout(3000)  # until the last minute's tokens are drawn
        page.screenshot(path=PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
