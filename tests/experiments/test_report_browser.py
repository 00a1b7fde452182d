"""The report in a real browser: no errors, no requests, tables that sort, figures that answer the pointer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated import oracle, simulated

from rlrate.experiments.report import render_page
from rlrate.experiments.report_content import content
from rlrate.experiments.scoring import Scores

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-dev-shm-usage --hide-scrollbars --window-size=1280,900"
)

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no Chromium with its chromedriver (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    page = folder / "report.html"
    scores = Scores(simulated(seeds=3, rates=3, problems=2))
    page.write_text(render_page(content(scores, oracle(), "runs/made-up")), encoding="utf-8")
    driver.page = page
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def opened(browser: Any) -> None:
    size(browser, 1280)
    browser.get(browser.page.as_uri())


def size(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def column(browser: Any, table: str, index: int) -> list[str]:
    rows = f"[...document.querySelectorAll('#{table} tbody tr')]"
    return list(browser.execute_script(f"return {rows}.map(row => row.cells[{index}].innerText)"))


def test_no_errors_and_no_requests(browser: Any) -> None:
    browser.get_log("performance")
    browser.get(browser.page.as_uri())
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked[0] == browser.page.as_uri()
    assert all(url == browser.page.as_uri() or url.startswith("data:") for url in asked)


def test_a_broken_script_would_be_noticed(browser: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = browser.page.read_text("utf-8").replace('"use strict";', '"use strict"; nothing.there();')
    broken.write_text(text.replace("</main>", '<img src="https://example.org/x.png"></main>'), encoding="utf-8")
    browser.get(broken.as_uri())
    messages: list[str] = []
    wanted = ("nothing is not defined", "Content Security Policy")
    until = time.monotonic() + 10.0  # the browser writes its log a little later
    while time.monotonic() < until and not all(any(text in message for message in messages) for text in wanted):
        messages += [entry["message"] for entry in browser.get_log("browser")]
    for text in wanted:
        assert any(text in message for message in messages)


def test_the_table_sorts_both_ways_and_by_value(browser: Any) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    headings = browser.find_elements("css selector", "#methods-table th button")
    ratio, method = headings[1], headings[0]
    ratio.click()
    rising = [float(text.split()[0]) for text in column(browser, "methods-table", 1)]
    assert rising == sorted(rising) and rising[0] == 1.0
    ratio.click()
    assert [float(text.split()[0]) for text in column(browser, "methods-table", 1)] == rising[::-1]
    heading = browser.find_elements("css selector", "#methods-table th")[1]
    assert heading.get_attribute("aria-sort") == "descending"
    method.click()
    names = column(browser, "methods-table", 0)
    assert names == sorted(names) and heading.get_attribute("aria-sort") is None
    # What has no value (the controls have no score) comes last, whichever way the order goes.
    score = next(i for i, each in enumerate(headings) if each.text == "score")
    for _ in range(2):
        headings[score].click()
        scores = column(browser, "methods-table", score)
        assert scores[-4:] == [""] * 4 and "" not in scores[:-4]


def test_every_figure_is_drawn_and_answers_the_pointer(browser: Any) -> None:
    from selenium.webdriver import ActionChains

    figures = browser.find_elements("css selector", "figure")
    assert len(figures) > 12
    tip = browser.find_element("id", "tip")
    for figure in figures:
        svg = figure.find_element("css selector", "svg")
        assert svg.size["height"] > 80 and svg.size["width"] > 300
        assert figure.find_elements("css selector", "path.line, path.whisker")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", svg)
        target = (figure.find_elements("css selector", ".span") or [svg])[0]
        ActionChains(browser, duration=0).move_to_element(target).perform()
        assert tip.is_displayed() and any(character.isdigit() for character in tip.text), figure.get_attribute("id")
    assert not browser.get_log("browser")


def test_arrow_keys_move_the_cross_hair(browser: Any) -> None:
    svg = browser.find_element("css selector", "#figure-profile svg")
    browser.execute_script("arguments[0].focus()", svg)
    seen = []
    for _ in range(2):
        svg.send_keys("\ue014")  # arrow to the right
        seen.append(browser.find_element("id", "tip").text)
    assert seen[0] != seen[1] and "learned" in seen[0]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_the_screen(browser: Any, width: int) -> None:
    size(browser, width)
    browser.get(browser.page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    smallest = "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    assert browser.execute_script(f"return {smallest}") > 8


def test_dark_and_light_follow_the_system_and_the_button(browser: Any) -> None:
    def ground() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    seen = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        seen[scheme] = ground()
    assert seen["light"] != seen["dark"]
    browser.find_element("id", "theme").click()
    assert ground() == seen["light"]
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    assert ground() == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
