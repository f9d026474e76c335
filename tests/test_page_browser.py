"""The page in a real browser: headless Chromium, as Debian packages it. CI installs it and sets ONNX_ATTN_NEEDS_BROWSER, so that
these tests cannot be skipped there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import EXPORTS

import onnx_attn

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("ONNX_ATTN_NEEDS_BROWSER"),
    reason="chromium and chromedriver are not installed (Debian: chromium chromium-driver)",
)

EVIL = '"><script>document.title="hacked"</script><img src=x onerror="document.title=\'hacked\'">\x1b[31m</svg>'
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,1000"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin whose nodes have hostile names, and the refused site of another model in front of it."""
    folder = tmp_path_factory.mktemp("page")
    model = onnx.load(EXPORTS / "swin_t.dynamo.18.static.half.onnx")
    for number, node in enumerate(model.graph.node):
        node.name = f"{EVIL}{number}"
    onnx.save(model, folder / "model.onnx")
    onnx_attn.fuse(folder / "model.onnx", folder / "out.onnx", html=folder / "page.html", verify=False)
    return folder / "page.html"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a site that is fused, one that is refused, and a softmax that is no attention."""
    folder = tmp_path_factory.mktemp("refused")
    parts = [
        onnx.compose.add_prefix(onnx.load(EXPORTS / name), prefix)
        for name, prefix in (
            ("mha_weights.torchscript.17.static.onnx", "a_"),
            ("sdpa_scale.torchscript.17.static.onnx", "b_"),
        )
    ]
    onnx.save(onnx.compose.merge_models(*parts, io_map=[]), folder / "model.onnx")
    onnx_attn.fuse(folder / "model.onnx", folder / "out.onnx", html=folder / "page.html", verify=False)
    return folder / "page.html"


def opened(browser: Any, path: Path, at: str = "") -> Any:
    browser.get("about:blank")
    browser.get(f"file://{path}{at}")
    return browser


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def shown(browser: Any) -> list[str]:
    groups = browser.find_elements("css selector", ".group")
    return [group.get_attribute("id") for group in groups if group.is_displayed()]


def test_it_opens_without_errors_and_paints_its_masks(browser: Any, page: Path) -> None:
    opened(browser, page, "#site-1")
    assert browser.find_element("id", "site-1").get_attribute("open")
    painted = browser.execute_script(
        "return [...document.querySelectorAll('#site-1 canvas')].map(c => new Set("
        "new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
    )
    assert len(painted) == 7  # Windows, two heads, four windows of the shift mask.
    assert painted[0] == 3  # The first window, those beside it, and those across.
    assert all(colours > 1 for colours in painted[1:3])
    assert errors(browser) == []


def test_hostile_names_are_text(browser: Any, page: Path) -> None:
    opened(browser, page)
    for group in browser.find_elements("css selector", ".group"):
        browser.execute_script("arguments[0].open = true", group)
    assert "hacked" not in browser.title
    assert browser.find_elements("css selector", "img, body script ~ script, svg script") == []
    names = [each.text for each in browser.find_elements("css selector", ".group .name")]
    assert all('"><script>document.title="hacked"</script>' in name for name in names)
    assert "\x1b" not in page.read_text(encoding="utf-8")
    assert errors(browser) == []


def test_filters_and_searches(browser: Any, refused: Path) -> None:
    opened(browser, refused)
    everything = shown(browser)
    assert len(everything) == 2
    browser.find_element("css selector", "[data-tag=refused]").click()
    (left,) = shown(browser)
    assert "probabilities-used" in browser.find_element("id", left).text
    browser.find_element("css selector", "[data-tag='']").click()
    search = browser.find_element("id", "search")
    search.send_keys("b_")
    assert shown(browser) == [each for each in everything if each != left]
    search.clear()
    search.send_keys("nothing of this name")
    assert shown(browser) == []
    assert browser.find_element("id", "shown").text == "0 of 2 kinds"
    assert errors(browser) == []


def test_it_expands_and_folds_and_changes_its_colours(browser: Any, refused: Path) -> None:
    opened(browser, refused)
    button = browser.find_element("id", "expand")
    button.click()
    assert all(group.get_attribute("open") for group in browser.find_elements("css selector", ".group"))
    assert browser.find_element("css selector", ".group svg").is_displayed()
    button.click()
    assert not any(group.get_attribute("open") for group in browser.find_elements("css selector", ".group"))

    def back() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    before = back()
    browser.find_element("id", "theme").click()
    assert back() != before
    browser.find_element("id", "theme").click()
    assert back() == before
    assert errors(browser) == []


def test_the_outline_leads_to_the_site(browser: Any, page: Path) -> None:
    opened(browser, page)
    browser.find_elements("css selector", ".strip a")[0].click()
    assert browser.find_element("id", "site-0").get_attribute("open")
