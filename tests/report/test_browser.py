"""The page in a real browser: no errors, nothing loaded, images there, tables that sort.

Skipped where there is no Chromium with its driver (Debian's packages chromium, chromium-driver).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrreid_ext.report.blocks import (
    Cell,
    Details,
    Gallery,
    Grid,
    LeftOut,
    Match,
    Note,
    Row,
    Section,
    Table,
    Tiles,
    figure_of,
    picture_of,
)
from lrreid_ext.report.page import render
from lrreid_ext.report.plots import line, new_figure

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver") or ""
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver on this machine"
)

TABLE = Table(
    "Three runs.",
    ["run", "Rank-1", "note (words)"],
    [
        ["b", Cell("9.5 ± 1.0", 9.5), "two"],
        ["a", Cell("30.0 ± 2.0", 30.0, True), "ten"],
        ["c", Cell("–"), "one"],  # noqa: RUF001 - as the page writes what isn't there
    ],
    words=[2],
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of block."""
    noise = np.random.default_rng(0).integers(0, 255, (128, 64, 3), dtype=np.uint8)
    large = Image.fromarray(noise)
    small = picture_of(large.resize((16, 32)), "query", ["16 x 32 px"], lossless=True)
    match = picture_of(large, "rank 1, right")
    figure, axes = new_figure(2)
    line(axes[0], [1, 2, 3], [1, 3, 2], "one", 0, [0.1, 0.2, 0.3])
    blocks = [
        Tiles([("a", "30.0", ["HR 40"])]),
        TABLE,
        Details("More", blocks=[Table("Again.", ["run", "x"], [["a", "1"]])]),
        figure_of(figure, "f", "a curve"),
        Grid(["LR", "none", "HR"], [Row("one", [small, None, match])], "caption"),
        Gallery("Person 1", small, [("a", "right at rank 1", [Match(match, True, 1, "0.1")])]),
        Note("Mind this.", warning=True),
    ]
    text = render(
        "Page", "about", [Section("all", "All", blocks)], [LeftOut("x", "X", "not there")]
    )
    path = tmp_path_factory.mktemp("browser") / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    """A browser with the page open, and its logs kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def first_column(browser: Any) -> list[str]:
    cells = "document.querySelectorAll('table.sortable')[0].querySelectorAll('tbody th')"
    return browser.execute_script(f"return [...{cells}].map(c => c.textContent)")


def test_it_opens_without_errors_or_requests(browser: Any, page: Path) -> None:
    assert browser.title == "Page"
    assert browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("BeSent")]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []


def test_its_images_are_there(browser: Any) -> None:
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert len(images) == 4
    assert all(done and width > 0 and shown > 0 and alt for done, width, shown, alt in images)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getBBox().width)"
    )
    assert len(boxes) == 1 and boxes[0] > 0


def test_tables_sort_by_mouse_and_by_key(browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    name, rank, note = browser.find_elements(By.CSS_SELECTOR, "table.sortable thead button")[:3]
    assert first_column(browser) == ["b", "a", "c"]
    rank.click()  # numbers: the largest first, and what isn't there last
    assert first_column(browser) == ["a", "b", "c"]
    head = rank.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "descending"
    rank.send_keys(Keys.ENTER)
    assert first_column(browser) == ["b", "a", "c"]
    assert head.get_attribute("aria-sort") == "ascending"
    note.send_keys(Keys.SPACE)
    assert first_column(browser) == ["c", "a", "b"]
    assert head.get_attribute("aria-sort") is None
    name.click()
    assert first_column(browser) == ["a", "b", "c"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(browser: Any, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    script = """
      const rgb = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const ground = rgb(getComputedStyle(document.querySelector('.part')).backgroundColor);
      return [...document.querySelectorAll('p, td, th, a, li, summary, .caption, figure svg text')]
        .filter((e) => e.getClientRects().length && !e.closest('.skip, .warning'))
        .map((e) => [getComputedStyle(e), e instanceof SVGElement])
        .map(([s, svg]) => [ground, rgb(svg ? s.fill : s.color)]);
    """
    pairs = browser.execute_script(script)
    assert len(pairs) > 20
    assert min(contrast(ground, ink) for ground, ink in pairs) >= 4.5  # WCAG 2, level AA


def contrast(first: list[float], second: list[float]) -> float:
    """WCAG's contrast ratio of two sRGB colours, 0-255."""

    def luminance(colour: list[float]) -> float:
        unit = np.array(colour) / 255
        linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_a_narrow_screen_and_paper_lose_nothing(browser: Any) -> None:
    narrow = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelector('details').open") is True
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelector('details').open") is False
