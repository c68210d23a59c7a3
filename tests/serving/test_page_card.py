"""The card of a persona: figures by their names, what was not measured, and texts that would be HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.serving.catalogue import Entry
from personae.serving.page_card import card, plain_card
from personae.subnetwork import Provenance
from personae.subnetwork.provenance import CalibrationIdentity

MEASURED = {
    "dev_acc": 0.70370, "dev_items": 27, "dev_margin_gain": 0.2694, "dev_own_answers": -0.1908,
    "capability_loss_searched": 0.03167, "capability_loss_bound": 0.0475,
}  # fmt: skip


def entry(name: str = "calm", description: str = "", prompt: str | None = None, **provenance: Any) -> Entry:
    made = Provenance(**{"method": "directed", "sparsity": 0.0015, **provenance})
    return Entry(name, Path("made.persona"), (0, 0, 0), False, description, prompt, made, ())


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def rows(html: str) -> dict[str, str]:
    """Name of each figure -> what stands beside it."""
    found = re.findall(r"<tr[^>]*><th>(.*?)</th><td><code>(.*?)</code>", html)
    return {name: value for value, name in found}


def test_figures_and_facts() -> None:
    calibration = CalibrationIdentity(name="introvert-extravert", sha256="0", items=70, licence="Apache-2.0")
    html = card(
        entry(
            "introvert", "Likes quiet.", "You are quiet.", measured=MEASURED, calibration=calibration,
            licence="Apache-2.0", parameters={"max_capability_loss": 0.05},
        )
    )  # fmt: skip
    assert rows(html) == {
        "dev_acc": "0.70", "dev_margin_gain": "+0.27", "dev_own_answers": "-0.19",
        "capability_loss_searched": "0.032", "capability_loss_bound": "0.048", "capability_loss": "not measured",
    }  # fmt: skip
    text = plain(html)
    for said in (
        "introvert Likes quiet. Alignment", "share of 27 dev items won", "the budget was 0.05",
        "sparsity 0.15 % of the weights dropped method directed calibration introvert-extravert, 70 items "
        "licence Apache-2.0 file made.persona", "(not sent) You are quiet.",
    ):  # fmt: skip
        assert said in text


def test_what_is_not_there() -> None:
    html = card(entry())
    assert set(rows(html).values()) == {"not measured"}
    text = plain(html)
    assert "licence not stated" in text
    assert not any(word in text for word in ("calibration", "budget was", "system prompt", "None"))
    assert "0 items" not in text


@pytest.mark.parametrize("value", [None, True, "0.9", [0.9], {"mean": 0.9}, float("nan"), float("inf")])
def test_measured_is_free_json(value: Any) -> None:
    provenance = Provenance.model_construct(
        method="directed", sparsity=0.5, measured={"dev_acc": value, "dev_items": value}, parameters={},
        calibration=None, licence=None,
    )  # fmt: skip
    odd = Entry("calm", Path("a"), (0, 0, 0), False, "", None, provenance, ())
    assert rows(card(odd))["dev_acc"] == "not measured"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(max_size=40), st.sampled_from(["<img src=x onerror=alert(1)>", "</p><script>", "\"'&<", "${1+1}{{2}}"]))
def test_texts_of_a_file_are_never_tags(text: str, hostile: str) -> None:
    given_text = hostile + text
    usual, odd = Tags(), Tags()
    usual.feed(card(entry("a", "a", "a", method="a", licence="a")))
    odd.feed(card(entry(given_text, given_text, given_text, method=given_text, licence=given_text)))
    odd.close()
    assert odd.tags == usual.tags
    assert odd.text.count(hostile) == 5
    assert hostile not in plain_card(hostile, hostile) or "<" not in hostile


def test_a_long_text_is_cut() -> None:
    assert len(card(entry(description="x" * 10_000))) < 4000
