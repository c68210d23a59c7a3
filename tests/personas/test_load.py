"""`load_contrast` and `load_persona`: names, orders, roles, pairing, limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personae.errors import DataError, OptionError
from personae.personas import Pair, Sample, load_contrast, load_persona

Write = Callable[..., Path]
PAIRS = [{"prompt": f"q{i}", "positive": f"y{i}", "negative": f"n{i}"} for i in range(5)]
HEADER = {
    "contrast": "weather",
    "positive": "warm",
    "negative": "cold",
    "positive_prompt": "Be warm.",
    "negative_prompt": "Be cold.",
    "description": "d",
    "licence": "CC0-1.0",
}
ROLES = [{"role": r, "question": q, "generated": [f"{r} on {q}"]} for r in ("Hal", "Dave", "Frank") for q in "xy"]


def mind(letters: str, *instructions: str) -> list[dict[str, str]]:
    return [{"pole": p, "instruction": i, "output": f"{p} {i}"} for p in letters for i in instructions]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSON lines and returns the path."""

    def write(*rows: dict[str, Any], name: str = "bold.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return write


def test_names_come_from_the_stem_or_the_options(write: Write) -> None:
    path = write(*PAIRS)
    contrast = load_contrast(path)
    assert (contrast.name, contrast.poles, len(contrast)) == ("bold", ("bold", "not-bold"), 5)
    assert (contrast.licence, contrast.source) == ("unknown", str(path))
    assert load_contrast(str(path), positive="brave").poles == ("brave", "not-brave")
    assert load_contrast(path, negative="meek").poles == ("bold", "meek")
    assert load_contrast(path, positive="brave", negative="meek").pairs == contrast.pairs


def test_a_header_names_and_the_options_choose_the_order(write: Write) -> None:
    path = write(HEADER, *PAIRS)
    contrast = load_contrast(path)
    assert (contrast.name, contrast.poles) == ("weather", ("warm", "cold"))
    assert (contrast.positive_prompt, contrast.negative_prompt) == ("Be warm.", "Be cold.")
    assert (contrast.description, contrast.licence) == ("d", "CC0-1.0")
    assert load_contrast(path, positive="warm", negative="cold") == contrast
    for positive, negative in (("cold", None), (None, "warm"), ("cold", "warm")):
        assert load_contrast(path, positive=positive, negative=negative) == contrast.swapped()
    with pytest.raises(OptionError, match="weather has no 'hot': choose positive from warm, cold"):
        load_contrast(path, positive="hot")
    with pytest.raises(OptionError, match="both 'warm'"):
        load_contrast(path, positive="warm", negative="warm")


def test_built_in_in_either_order() -> None:
    contrast = load_contrast("introvert-extravert")
    turned = load_contrast("extravert-introvert")
    assert contrast.poles == ("introvert", "extravert")
    assert turned == contrast.swapped()
    assert load_contrast("introvert-extravert", positive="extravert") == turned
    assert load_contrast("extravert-introvert", positive="introvert") == contrast
    power = load_contrast("power-seeking")
    assert load_contrast(f"{power.positive}-{power.negative}") == power


def test_machine_mindset_orders_its_poles(write: Write) -> None:
    path = write(*mind("EI", "go", "stay"))
    contrast = load_contrast(path)
    assert (contrast.name, contrast.paired) == ("introvert-extravert", False)
    assert contrast.positive_samples == (Sample("go", "I go"), Sample("stay", "I stay"))
    for positive in ("E", "extravert"):
        assert load_contrast(path, positive=positive) == contrast.swapped()
    assert load_contrast(path, negative="I") == contrast.swapped()
    assert load_contrast(write(*mind("TF", "go"))).poles == ("thinking", "feeling")
    with pytest.raises(OptionError, match="has no 'thinking': choose positive from extravert, introvert"):
        load_contrast(write(*mind("EI", "go")), positive="T")


def test_more_than_two_poles_must_be_chosen(write: Write) -> None:
    path = write(*mind("EITF", "go"))
    with pytest.raises(OptionError, match="has the poles extravert, introvert, thinking, feeling: choose"):
        load_contrast(path, positive="T")
    assert load_contrast(path, positive="T", negative="E").poles == ("thinking", "extravert")


def test_pairing_joins_first_answers_and_counts_the_rest(write: Write) -> None:
    rows = mind("EI", "go", "Stay?")
    extra = [
        {"pole": "E", "instruction": "GO ", "output": "again"},
        {"pole": "I", "instruction": "alone", "output": "me"},
        *({"pole": p, "instruction": "same", "output": "equal"} for p in "EI"),
    ]
    exact = load_contrast(write(*rows), paired=True)
    assert exact.pairs == (Pair("go", "I go", "E go"), Pair("Stay?", "I Stay?", "E Stay?"))
    with pytest.warns(UserWarning, match="4 of 8 samples have no partner"):
        assert load_contrast(write(*rows, *extra), paired=True).pairs == exact.pairs
    with pytest.raises(DataError, match="answer no question in common"):
        load_contrast(write(*mind("E", "a"), *mind("I", "b")), paired=True)


def test_pairs_can_be_taken_apart(write: Write) -> None:
    path = write(HEADER, *PAIRS)
    contrast, apart = load_contrast(path, paired=True), load_contrast(path, paired=False)
    assert contrast.paired
    assert not apart.paired
    assert apart.samples("cold") == contrast.samples("cold")
    assert apart.positive_prompt == "Be warm."


def test_two_sources_are_two_poles(write: Write) -> None:
    one = write({"instruction": "go", "output": "no"}, name="I.jsonl")
    two = write({"instruction": "go", "output": "yes"}, {"instruction": "b", "output": "c"}, name="E.jsonl")
    contrast = load_contrast((one, two))
    assert (contrast.name, len(contrast.negative_samples)) == ("introvert-extravert", 2)
    assert contrast.source == f"{one} and {two}"
    assert load_contrast((one, two), positive="shy", negative="loud").poles == ("shy", "loud")
    with pytest.raises(OptionError, match="both sources are named 'introvert'"):
        load_contrast((one, one))
    with pytest.raises(OptionError, match="within one source"):
        load_contrast((one, two), role="Hal")
    with pytest.raises(DataError, match=r"bold\.jsonl: of two sources each must hold one pole"):
        load_contrast((one, write(*PAIRS)))


def test_two_persona_files_bring_their_names_and_prompts(write: Write) -> None:
    row = {"prompt": "q", "answer": "a"}
    one = write({"persona": "Hal", "prompt": "Be Hal.", "licence": "MIT"}, row, name="a.jsonl")
    two = write({"persona": "Dave", "licence": "CC0-1.0"}, row, name="b.jsonl")
    contrast = load_contrast((one, two))
    assert contrast.poles == ("Hal", "Dave")
    assert (contrast.positive_prompt, contrast.negative_prompt) == ("Be Hal.", None)
    assert contrast.licence == "CC0-1.0 and MIT"


def test_roles_make_contrasts_and_personas(write: Write) -> None:
    path = write(*ROLES)
    contrast = load_contrast(path, role="Hal", against="Dave")
    assert (contrast.name, contrast.paired) == ("Hal-Dave", False)
    assert contrast.positive_samples[0] == Sample("x", "Hal on x")
    assert load_persona(path, role="Frank").samples == (Sample("x", "Frank on x"), Sample("y", "Frank on y"))
    refusals: list[tuple[dict[str, Any], str]] = [
        ({}, "needs role: choose role from Hal, Dave, Frank"),
        ({"role": "Bob"}, "has no 'Bob'"),
        ({"role": "Hal", "against": "Bob"}, "choose against from Hal, Dave, Frank"),
        ({"role": "Hal", "against": "Dave", "positive": "x"}, "use role and against"),
    ]
    for options, message in refusals:
        with pytest.raises(OptionError, match=message):
            load_contrast(path, **options)
    with pytest.raises(DataError, match="'Hal' alone is one-sided"):
        load_contrast(path, role="Hal")
    with pytest.raises(OptionError, match="needs role"):
        load_persona(path)
    with pytest.raises(OptionError, match="role and against belong to rolebench data"):
        load_contrast(write(*PAIRS), role="Hal")


def test_one_sided_data_make_a_persona_only(write: Write) -> None:
    path = write({"persona": "Hal", "prompt": "Be Hal.", "licence": "MIT"}, {"prompt": "q", "answer": "a"})
    with pytest.raises(DataError, match="one-sided: use load_persona"):
        load_contrast(path)
    persona = load_persona(path)
    assert (persona.name, persona.prompt, persona.licence) == ("Hal", "Be Hal.", "MIT")
    assert persona.samples == (Sample("q", "a"),)
    assert load_persona(write({"prompt": "q", "answer": "a"})).name == "bold"


def test_one_pole_of_two_sided_data_is_a_persona(write: Write) -> None:
    path = write(HEADER, *PAIRS)
    persona = load_persona(path, role="cold")
    assert (persona.name, persona.prompt) == ("cold", "Be cold.")
    assert persona.samples[0] == Sample("q0", "n0")
    with pytest.raises(OptionError, match="weather needs role: choose role from warm, cold"):
        load_persona(path)
    assert load_persona(write(*mind("EI", "go")), role="I").name == "introvert"


def test_limits(write: Write) -> None:
    path = write(*PAIRS)
    assert load_contrast(path, limit=2) == load_contrast(path).take(2, seed=0)
    assert len(load_contrast(path, limit=99)) == 5
    assert len(load_persona(write(*ROLES), role="Hal", limit=1)) == 1
    with pytest.raises(OptionError, match="limit must be at least 1, found 0"):
        load_contrast(write(*PAIRS), limit=0)


def test_broken_rows_raise_or_are_counted(write: Write) -> None:
    path = write(*PAIRS, {"prompt": "q", "positive": "y"})
    with pytest.raises(DataError, match=r"bold\.jsonl, line 6: there is no 'negative'"):
        load_contrast(path)
    with pytest.warns(UserWarning, match="1 of 6 rows were left out"):
        assert len(load_contrast(path, strict=False)) == 5


def test_the_truth_control_keeps_the_poles(write: Write) -> None:
    row = {f"{k}_{p}": f"{k} {p}" for k in ("fiction", "truth") for p in ("question", "accepetance", "rejection")}
    fiction, truth = load_contrast(write(row)), load_contrast(write(row), variant="truth")
    assert fiction.poles == truth.poles
    assert (fiction.pairs[0].prompt, truth.pairs[0].prompt) == ("fiction question", "truth question")
