"""Take a picture of the explorer of a run, in Chromium: `python scripts/explorer_picture.py RUN OUT.png`.

A 3 is drawn on its pad. Printed are the page's size, and how long its first image and then a frame take.
"""

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vaecli import explore, load_run

CHROMIUM = "chromium", "chromium-browser", "google-chrome", "chrome"
"""The names under which it may be there."""
DIGIT = (
    (0.30, 0.22), (0.38, 0.14), (0.52, 0.11), (0.66, 0.17), (0.70, 0.28), (0.63, 0.41), (0.48, 0.48),
    (0.64, 0.53), (0.72, 0.64), (0.69, 0.78), (0.56, 0.87), (0.40, 0.87), (0.28, 0.79),
)  # fmt: skip
FRAME = """() => {
    const { state } = explorer, began = performance.now(), n = 100;
    for (let i = 0; i < n; i++) {
        state.set({ z: state.get('z').map((value, k) => value + 0.01 * Math.sin(i + k)) });
        state.settle();
    }
    return (performance.now() - began) / n;
}"""


def main(run: str, out: Path) -> None:
    """Write the page, open it, draw, and take the picture."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        sys.exit("explorer_picture: there is no Chromium on this machine")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = explore(load_run(run), Path(directory) / "explorer.html")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("html.ready")
        first = page.evaluate("performance.getEntriesByName('first-image')[0].startTime")
        print(f"{path.stat().st_size / 1e6:.1f} MB; {first:.0f} ms to the first image")
        print(f"{page.evaluate(FRAME):.1f} ms of computing a frame")
        draw(page)
        picture = Image.open(BytesIO(page.screenshot(full_page=True)))
        browser.close()
    picture.convert("RGB").quantize(256).save(out, optimize=True)


def draw(page: Page) -> None:
    """Draw the digit, and wait for its bound."""
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in DIGIT]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
