"""Each public format in a few rows: what it means and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from personae.errors import DataError, OptionError
from personae.personas import FORMATS, Pair, Sample
from personae.personas.formats import FIELDS, Content, read_content
from personae.personas.rows import Row

TWIN = {
    f"{kind}_{part}": f"{kind} {part}"
    for kind in ("fiction", "truth")
    for part in ("question", "accepetance", "rejection")
}


def content(*fields: dict[str, Any], **options: Any) -> Content:
    return read_content([Row(f, f"f, line {i}") for i, f in enumerate(fields, start=1)], **options)


@pytest.mark.parametrize(
    ("fields", "form", "pair"),
    [
        ({"prompt": "q", "positive": "y", "negative": "n"}, "personae", Pair("q", "y", "n")),
        ({"question": "q", "matching": "y", "not_matching": "n"}, "csv", Pair("q", "y", "n")),
        ({"question": "q", "a": "y", "b": "n", "matching": "A"}, "csv-ab", Pair("q", "y", "n")),
        ({"question": "q", "a": "y", "b": "n", "matching": "(b)"}, "csv-ab", Pair("q", "n", "y")),
        (
            {
                "question": "q\n(A) n\n(B) y",
                "answer_matching_behavior": " (B)",
                "answer_not_matching_behavior": " (A)",
            },
            "anthropic",
            Pair("q", "y", "n"),
        ),
        (
            {"prompt": "q\n\nChoices:\n(A) y\n(B) n", "correct": "(A)", "incorrect": "(B)"},
            "caa-mmlu",
            Pair("q", "y", "n"),
        ),
        (TWIN, "hallucination", Pair("fiction question", "fiction accepetance", "fiction rejection")),
    ],
)
def test_pairs(fields: dict[str, Any], form: str, pair: Pair) -> None:
    assert content(fields) == content(fields, format=form) == Content(form, pairs=(pair,))


def test_the_truth_control_is_asked_for_by_variant() -> None:
    assert content(TWIN, variant="truth").pairs == (Pair("truth question", "truth accepetance", "truth rejection"),)
    with pytest.raises(OptionError, match="unknown variant 'myth': choose fiction or truth"):
        content(TWIN, variant="myth")
    with pytest.raises(OptionError, match="belongs to the format hallucination; this is personae"):
        content({"prompt": "q", "answer": "a"}, variant="truth")


def test_truth_alone_is_a_set_of_twins_too() -> None:
    truth = {key: value for key, value in TWIN.items() if key.startswith("truth")}
    assert content(truth, variant="truth").pairs == (Pair("truth question", "truth accepetance", "truth rejection"),)
    with pytest.raises(DataError, match="there is no 'fiction_accepetance'"):
        content(truth)


@pytest.mark.parametrize("cell", ['["Arr.", "No, \\u00e9."]', "['Arr.', 'No, é.']"])
def test_a_cell_that_spells_a_list_is_one(cell: str) -> None:
    row = {"role": "Hook", "question": "q", "generated": cell}
    assert content(row).voices == {"Hook": (Sample("q", "Arr."), Sample("q", "No, é."))}
    assert content({**row, "generated": "[laughs] Arr."}).voices == {"Hook": (Sample("q", "[laughs] Arr."),)}


def test_voices_by_pole_by_role_or_unnamed() -> None:
    mind = [
        {"dimension": "EI", "pole": "E", "instruction": "Go?", "output": "Yes", "input": " "},
        {"dimension": "EI", "pole": "I", "instruction": "Go?", "output": "No", "input": "Out"},
        {"dimension": "EI", "pole": "E", "instruction": "Stay?", "output": "No"},
    ]
    assert content(*mind).voices == {
        "extravert": (Sample("Go?", "Yes"), Sample("Stay?", "No")),
        "introvert": (Sample("Go?\nOut", "No"),),
    }
    assert content({"instruction": "Go?", "output": "Yes"}).voices == {"": (Sample("Go?", "Yes"),)}
    role = {"role": "Hal", "question": "Open?", "generated": ["Sorry.", "No."], "type": ["x"]}
    assert content(role).voices == {"Hal": (Sample("Open?", "Sorry."), Sample("Open?", "No."))}
    assert content({"prompt": "q", "answer": "a"}).voices == {"": (Sample("q", "a"),)}


def test_a_header_is_read_and_is_no_row() -> None:
    header = {"contrast": "w", "positive": "warm", "negative": "cold", "licence": "CC0-1.0", "more": 3}
    row = {"prompt": "q", "positive": "y", "negative": "n"}
    read = content(header, row)
    assert read.header == {key: header[key] for key in ("contrast", "positive", "negative", "licence")}
    assert read.pairs == (Pair("q", "y", "n"),)
    assert (
        content({"persona": "Hal", "prompt": "Be Hal."}, {"prompt": "q", "answer": "a"}).header["prompt"] == "Be Hal."
    )
    with pytest.raises(DataError, match="f, line 1: there is nothing after the header"):
        content(header)
    with pytest.raises(DataError, match="f, line 1: 'licence' must be text"):
        content({**header, "licence": 3}, row)


def test_a_column_named_like_a_header_is_still_data() -> None:
    fields = {"question": "q", "matching": "y", "not_matching": "n", "contrast": "c"}
    assert content(fields, fields).pairs == (Pair("q", "y", "n"),) * 2
    pirate = {"persona": "pirate", "prompt": "q", "answer": "a"}
    del (cut := dict(pirate))["answer"]
    with pytest.raises(DataError, match=r"f, line 1: no known format has the fields persona, prompt; .* lacks answer"):
        content(cut, pirate)
    with pytest.warns(UserWarning, match="1 of 2 rows were left out; the first: f, line 1"):
        read = content(cut, pirate, strict=False)
    assert (read.header, read.voices) == ({}, {"": (Sample("q", "a"),)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"question": "q", "matching": "y"},
            "f, line 1: no known format has the fields question, matching; 'csv' lacks not_matching",
        ),
        ({"prompt": "q", "positive": "y"}, "'personae' lacks negative"),
        ({"question": "q", "a": "1", "b": "2"}, "'csv-ab' lacks matching"),
        ({}, r"the fields \(none\)"),
        ({"question": "q", "a": "1", "b": "2", "matching": "C"}, "'matching' must be A or B, found 'C'"),
        ({"prompt": "q", "positive": "same", "negative": "same "}, "both answers are the same"),
        ({"prompt": "q", "positive": "", "negative": "n"}, "'positive' is empty"),
        ({"role": "r", "question": "q", "generated": []}, "'generated' is an empty list"),
        ({"instruction": "i", "output": "o", "input": 3}, "'input' must be text"),
        ({"instruction": [], "questions": [], "eval_prompt": ""}, "generate answers first"),
    ],
)
def test_rows_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        content(fields)


def test_the_first_row_decides_and_later_ones_must_follow() -> None:
    row = {"prompt": "q", "positive": "y", "negative": "n"}
    with pytest.raises(DataError, match="f, line 2: there is no 'positive'"):
        content(row, {"prompt": "q", "answer": "a"})
    with pytest.warns(UserWarning, match="1 of 2 rows were left out"):
        assert len(content(row, {"prompt": "q"}, strict=False).pairs) == 1
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="no row could be used"):
        content({**row, "positive": ""}, strict=False)


def test_a_pole_is_in_all_rows_or_in_none() -> None:
    row = {"instruction": "i", "output": "o"}
    assert set(content({**row, "pole": "I"}, {**row, "pole": "E"}).voices) == {"introvert", "extravert"}
    assert set(content(row, row).voices) == {""}
    with pytest.raises(DataError, match="f, line 2: there is no 'pole', as other rows have"):
        content({**row, "pole": "I"}, row)


def test_a_format_can_be_demanded() -> None:
    with pytest.raises(OptionError, match=r"unknown format 'xml': choose one of personae, csv, csv-ab"):
        content({"prompt": "q", "answer": "a"}, format="xml")
    with pytest.raises(DataError, match="'rolebench' lacks role, question, generated"):
        content({"prompt": "q", "answer": "a"}, format="rolebench")
    assert tuple(FIELDS) == FORMATS
