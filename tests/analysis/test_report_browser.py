"""The page in a real, headless Chromium: drawn whole, readable in light and dark, printed uncut, asking nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import report_data as data
from compare_data import SHAPES, artefact, random_masks, subnetwork
from personae.analysis.report import report

pytestmark = pytest.mark.all
playwright = pytest.importorskip("playwright.sync_api")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 60_000  # milliseconds, on however busy a machine
PAPER = 703  # CSS pixels between the margins of an A4 page

# Contrast of every text with what lies behind it, least first, by the formula of WCAG 2; opaque grounds only.
CONTRASTS = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .04045 ? v / 12.92
    : Math.pow((v + .055) / 1.055, 2.4); }); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = element => { for (let e = element; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); }
    return [255, 255, 255]; };
  const found = [];
  for (const element of document.querySelectorAll("h1, h2, h3, p, li, td, th, caption, figcaption, pre, a, .ci, "
      + ".main-svg text:not(.heatmaplayer text)")) {
    if (!element.textContent.trim() || element.closest("noscript")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(element instanceof SVGElement ? style.fill : style.color).slice(0, 3)),
                    light(ground(element))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), element.tagName, element.textContent.slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(the page, number of its figures) of one file of every kind, some of them hostile."""
    folder = tmp_path_factory.mktemp("report")
    names = ("bold", "shy", "calm<img src=x onerror=alert(1)>")
    masks = [subnetwork(name.replace("/", "|"), random_masks(SHAPES, 0.1, seed)) for seed, name in enumerate(names)]
    artefact(*masks).save(folder / "masks.persona")
    hostile = data.trace((data.HOSTILE, "b"), (data.HOSTILE, "$x$", *("word",) * 60))
    contents = (data.frontier(), data.faithfulness(), hostile, data.audit("power", "wealth"), data.dynamics(),
                data.causal())  # fmt: skip
    paths = [data.write(folder / f"{i}.json", content) for i, content in enumerate(contents)]
    found = report([data.evaluation_file(folder / "e.json"), *paths, folder / "masks.persona"], title=data.HOSTILE)
    found.save(folder / "report.html")
    return folder / "report.html", sum(len(part.figures) for part in found.parts)


@pytest.fixture
def visit(chromium: Any, made: tuple[Path, int]) -> Iterator[Callable[..., Any]]:
    """`visit(color_scheme="dark")` -> the page, all figures drawn. Nothing on it may fail, or ask for anything."""
    asked: list[str] = []
    trouble: list[str] = []
    contexts = []

    def go(**options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("weberror", lambda error: trouble.append(str(error.error)))
        context.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        context.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(made[0].as_uri())
        page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot').length === {made[1]}")
        return page

    yield go
    for context in contexts:
        context.close()
    # A script that a policy stops complains on the console: there was none to stop.
    assert trouble == []
    assert set(asked) == {made[0].as_uri()}


def test_every_figure_is_drawn(visit: Callable[..., Any], made: tuple[Path, int]) -> None:
    page = visit()
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")].map(place => [
             place.querySelector(".main-svg").getBoundingClientRect().height,
             place.querySelectorAll(".scatterlayer .trace path, .hm image, .barlayer path").length,
             place.getBoundingClientRect().right])"""
    )
    assert len(drawn) == made[1] > 20
    for height, marks, right in drawn:
        assert height >= 180
        assert marks >= 1
        assert right <= 1200
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert page.evaluate("document.images.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 23, 26)"}[scheme]
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 500
    assert any(tag == "text" for _, tag, _ in contrasts)
    assert contrasts[0][0] >= 4.5, contrasts[:5]


def test_figures_follow_when_the_scheme_changes(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="light")
    fill = "getComputedStyle(document.querySelector('.main-svg .xtick text')).fill"
    in_cells = "[...document.querySelectorAll('.heatmaplayer text')].map(e => getComputedStyle(e).fill)"
    light, cells = page.evaluate(fill), page.evaluate(in_cells)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(fill) != light
    assert len(set(cells)) >= 2  # light on dark cells and dark on light ones,
    assert page.evaluate(in_cells) == cells  # whatever lies around them
    assert page.evaluate(CONTRASTS)[0][0] >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_is_light_and_nothing_is_cut(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(color_scheme=scheme, viewport={"width": PAPER, "height": 1000})
    page.emulate_media(media="print", color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRASTS)[0][0] >= 4.5
    wide = page.evaluate(
        f"""() => [...document.querySelectorAll("table, .main-svg, pre, h2, p")]
              .filter(e => e.getBoundingClientRect().right > {PAPER} + 1).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert wide == []
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 9  # a page a part, at least


def test_a_small_screen_scrolls_tables_and_not_the_page(visit: Callable[..., Any]) -> None:
    page = visit(viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("document.querySelector('.scroll').scrollWidth") > 0
