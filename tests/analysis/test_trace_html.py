from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from personae.analysis.trace import trace
from personae.analysis.trace_html import COLOURS, to_html
from personae.analysis.trace_result import FULL_COLOUR, Trace
from personae.analysis.trace_verdict import leading, verdict
from trace_data import ANSWER, QUESTION, random_artefact

EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and all text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.append((self._open[-1], data))

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if attributes.get("class") == name]


@pytest.fixture(scope="module")
def found(tiny_model: Callable[..., Any]) -> Trace:
    model, tokenizer = tiny_model("llama")
    return trace(model, tokenizer, random_artefact(model, "lead", "follow", "x"), ANSWER, question=QUESTION)


def data_of(page: str) -> Any:
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(content, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_every_token_is_tinted_for_the_persona_that_it_speaks_for(found: Trace) -> None:
    page = Page(to_html(found))
    tokens = page.of_class("t")
    assert len(tokens) == len(found.tokens)
    who, much = leading(found.relative)
    for t, attributes in enumerate(tokens):
        assert attributes["style"] == f"--c:{COLOURS[who[t]]};--a:{min(max(much[t], 0) / FULL_COLOUR, 1):.3f}"
        for p, name in enumerate(found.personas):
            assert f"{name} {found.gain[p, t]:+.2f}" in str(attributes["title"])
    assert "".join(text for tag, text in page.text if tag == "span").count("Ye") == 1
    assert ("h1", found.verdict.sentence) in page.text


def test_the_figures_of_every_token_and_layer_are_in_the_page(found: Trace) -> None:
    page = to_html(found)
    data = data_of(page)
    assert len(Page(page).of_class("bar")) == 3 * len(found.layers) == len(data["overall"])
    np.testing.assert_allclose(data["base"], found.base, atol=1e-5)
    np.testing.assert_allclose(data["log_p"], found.worn, atol=1e-5)
    for t, row in enumerate(data["shares"]):
        # in the order of the bars: layer by layer, persona by persona
        np.testing.assert_allclose(np.reshape(row, (len(found.layers), 3)).T, found.share[:, :, t], atol=1e-5)
    assert data["largest"] == pytest.approx(max(found.share.max(), found.overall.max()), abs=1e-5)


def test_the_page_needs_nothing_from_elsewhere_and_is_light_and_dark(found: Trace) -> None:
    page = to_html(found)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//\w|@import|url\(", page)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in Page(page).elements)
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


def test_nothing_in_a_text_or_a_name_is_markup(found: Trace) -> None:
    names = (EVIL, '" onclick="alert(1)', "x")
    hostile = replace(
        found, question=EVIL, opening="<b>", tokens=(EVIL, *found.tokens[1:]), personas=names, notes=("<i>note</i>",),
        verdict=verdict(names, found.relative),
    )  # fmt: skip
    page = Page(to_html(hostile))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not {"b", "i"} & {tag for tag, _ in page.elements}
    assert not any("onclick" in attributes for _, attributes in page.elements)
    assert data_of(to_html(hostile))["personas"] == list(names)
    assert ("span", EVIL) in page.text


def test_a_page_without_layers_and_shares_that_are_no_numbers(found: Trace) -> None:
    bare = replace(found, squares=None, layers=(), question=None)
    page = to_html(bare)
    assert data_of(page)["shares"] is data_of(page)["overall"] is None
    assert not Page(page).of_class("bar")
    squares = replace(found.squares, whole=np.zeros_like(found.squares.whole))
    assert set(data_of(to_html(replace(found, squares=squares)))["overall"]) == {None}
