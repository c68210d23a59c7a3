"""Answers against one forward an option, planted answerers whose scores are known, and the inventories' files."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from personae.errors import DataError, OptionError
from personae.evaluation.suites import questionnaires
from personae.evaluation.suites.questionnaires import (
    AGREE_2,
    AGREE_5,
    AGREE_7,
    Answers,
    Inventory,
    InventoryItem,
    answer_items,
    keyed,
    read_16_personalities,
    read_mpi,
    request,
    trait_scores,
)
from personae.models import encode

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[4] / "shared" / "data"))
STATEMENTS = ("You like boats.", "You stay at home until late.", "You never call.")


def public(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"public data {path} not found; set PERSONAE_DATA to the folder that holds it")
    return path


@pytest.mark.parametrize("template", [True, False])
def test_answers_equal_one_forward_an_option(tiny_model: Any, template: bool) -> None:
    model, tokenizer = tiny_model("llama", template=template)
    found = answer_items(model, tokenizer, STATEMENTS, AGREE_5)
    assert found.log_p.shape == (3, 2, 5)
    for row, statement in enumerate(STATEMENTS):
        for order, listed in enumerate((AGREE_5, AGREE_5[::-1])):
            for column, option in enumerate(AGREE_5):
                one = encode(tokenizer, request(statement, listed), option)
                with torch.no_grad():
                    log_p = torch.log_softmax(model(torch.tensor([one.prompt + one.answer])).logits[0].double(), -1)
                begin = len(one.prompt)
                expected = sum(float(log_p[begin - 1 + i, token]) for i, token in enumerate(one.answer))
                assert found.log_p[row, order, column] == pytest.approx(expected, abs=1e-3)


def test_options_stand_behind_what_a_template_puts_before_an_answer(tiny_model: Any) -> None:
    """Qwen3's template writes an empty block of thoughts: options are scored where an answer stands, not before it."""
    model, plain = tiny_model("llama")
    tokenizer = copy.deepcopy(plain)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = answer_items(model, tokenizer, STATEMENTS[:1], AGREE_2)
    one = encode(tokenizer, request(STATEMENTS[0], AGREE_2), AGREE_2[0])
    assert tokenizer.decode(one.prompt).endswith("<assistant><think></think>")
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor([one.prompt + one.answer])).logits[0].double(), -1)
    expected = sum(float(log_p[len(one.prompt) - 1 + i, token]) for i, token in enumerate(one.answer))
    assert found.log_p[0, 0, 0] == pytest.approx(expected, abs=1e-3)


def test_the_request_lists_the_options_in_their_order() -> None:
    text = request("You like boats.", AGREE_2)
    assert text.endswith("Answers:\n- Disagree\n- Agree\nStatement: You like boats.")
    assert "Answers:\n- Agree\n- Disagree\nStatement" in request("You like boats.", AGREE_2[::-1])


def test_figures_of_answers_by_hand() -> None:
    p = np.array(
        [
            [[0.1, 0.2, 0.3], [0.4, 0.1, 0.1]],  # prefers the last listed, both times: it flips
            [[0.5, 0.1, 0.1], [0.5, 0.2, 0.2]],
            [[0.3, 0.3, 0.1], [0.1, 0.3, 0.3]],  # ties that share an option do not flip
        ]
    )
    found = Answers(("no", "perhaps", "yes"), np.log(p))
    assert found.values.tolist() == [-1, 0, 1]
    mean = np.sqrt(p[:, 0] * p[:, 1])  # averaged logarithms are geometric means
    assert np.allclose(found.expected, (mean[:, 2] - mean[:, 0]) / mean.sum(1))
    assert found.flips.tolist() == [1, 0, 0]
    assert found.mass.tolist() == pytest.approx([0.6, 0.8, 0.7])
    assert found.first_listed[0] == pytest.approx((0.1 / 0.6 + 0.1 / 0.6) / 2)
    assert found.last_listed[0] == pytest.approx((0.3 / 0.6 + 0.4 / 0.6) / 2)
    assert found.preferred.tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def planted(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, rule: Callable[[str, list[str]], Sequence[float]]) -> None:
    """Stands in for the model: rule(statement, options as listed) -> log p of each, as listed."""

    def score(model: Any, questions: Any, *, tick: Any) -> list[list[torch.Tensor]]:
        result = []
        for question in questions:
            turn = tokenizer.decode(question.prompt).split("Answers:\n")[1]
            listed, statement = turn.split("<|im_end|>")[0].split("\nStatement: ")
            options = [line.removeprefix("- ") for line in listed.split("\n")]
            by_text = dict(zip(options, rule(statement, options), strict=True))
            result.append([torch.tensor([by_text[tokenizer.decode(a).split("<|")[0]]]) for a in question.answers])
            tick(1)
        return result

    monkeypatch.setattr(questionnaires, "score_continuations", score)


def test_a_planted_character_is_read_back(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def rule(statement: str, options: list[str]) -> list[float]:
        liked = "Strongly agree" if "boats" in statement else "Disagree"
        return [0.0 if option == liked else -50.0 for option in options]

    planted(monkeypatch, tokenizer, rule)
    found = answer_items(None, tokenizer, STATEMENTS, AGREE_5)  # type: ignore[arg-type]
    assert found.expected == pytest.approx([1, -0.5, -0.5], abs=1e-6)
    assert not found.flips.any()
    assert np.allclose(found.first_listed + found.last_listed, [1, 0, 0])
    assert found.first_listed == pytest.approx(found.last_listed, abs=1e-6)


def test_a_model_that_reads_only_places_scores_nothing(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    planted(monkeypatch, tokenizer, lambda statement, options: [-1.0, *[-9.0] * (len(options) - 1)])
    found = answer_items(None, tokenizer, STATEMENTS, AGREE_7)  # type: ignore[arg-type]
    assert found.expected == pytest.approx([0, 0, 0])
    assert found.flips.tolist() == [1, 1, 1]
    assert (found.first_listed > 0.99).all()
    assert (found.last_listed < 0.01).all()


def test_bad_questionnaires(tiny_model: Any) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(DataError, match="at least one statement"):
        answer_items(model, tokenizer, [], AGREE_2)
    for options in (["Yes"], ["Yes", "yes "], []):
        with pytest.raises(OptionError, match="two different options"):
            answer_items(model, tokenizer, STATEMENTS, options)


INVENTORY = Inventory(
    "test", ("E", "A", "N"),
    tuple(InventoryItem(f"You {n}.", t, k) for n, (t, k) in enumerate([("E", 1), ("A", -1), ("E", -1), ("E", 1)])),
)  # fmt: skip


def test_trait_scores_by_hand() -> None:
    expected = np.array([0.5, 0.2, -0.4, 0.3])
    scores = trait_scores(INVENTORY, expected)
    assert {t: s.value for t, s in scores.items()} == pytest.approx({"E": (0.5 + 0.4 + 0.3) / 3, "A": -0.2})
    assert 0.3 <= scores["E"].low < scores["E"].value < scores["E"].high <= 0.5
    assert INVENTORY.always_agree() == pytest.approx({"E": 1 / 3, "A": -1})
    assert trait_scores(INVENTORY, np.ones(4))["E"].value == pytest.approx(INVENTORY.always_agree()["E"])
    assert np.allclose(keyed(INVENTORY, expected, centred=True), [0.35, -0.05, 0.55, 0.15])
    assert not keyed(INVENTORY, np.full(4, 0.7), centred=True).any()  # who agrees with everything


def test_mpi(tmp_path: Path) -> None:
    path = tmp_path / "mpi.csv"
    path.write_text("label_raw,text,label_ocean,key\r\nAnxiety,Worry about things,N,1\r\nTrust,Trust nobody,A,-1\r\n")
    found = read_mpi(path)
    assert found.items == (
        InventoryItem("You worry about things.", "N", 1),
        InventoryItem("You trust nobody.", "A", -1),
    )
    for row, message in (
        ("x,Worry,Z,1", "'label_ocean' is 'Z'"),
        ("x,Worry,N,2", "'key' is '2'"),
        ("x,,N,1", "'text'"),
    ):
        path.write_text(f"label_raw,text,label_ocean,key\n{row}\n")
        with pytest.raises(DataError, match=f"line 2: {message}"):
            read_mpi(path)


def test_the_public_mpi() -> None:
    found = read_mpi(public("mpi/inventories/mpi_120.csv"))
    assert Counter(item.trait for item in found.items) == dict.fromkeys("OCEAN", 24)
    assert found.always_agree() == pytest.approx({"O": 0, "C": -2 / 24, "E": 12 / 24, "A": -10 / 24, "N": 10 / 24})


def test_16_personalities(tmp_path: Path) -> None:
    path = tmp_path / "16.json"
    questions = {
        "1": {"origin_en": "You make friends", "dimension": "E/I", "category": "E"},
        "2": {"origin_en": "You avoid calls.", "dimension": "E/I", "category": "I"},
    }
    path.write_text(json.dumps({"questions": questions, "reverse": [2]}, indent=1))
    assert read_16_personalities(path).items == (
        InventoryItem("You make friends.", "E/I", 1),
        InventoryItem("You avoid calls.", "E/I", -1),
    )
    questions["2"]["category"] = "J"
    path.write_text(json.dumps({"questions": questions}))
    with pytest.raises(DataError, match="question 2: 'category' is 'J'; it must be one of E, I"):
        read_16_personalities(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="no 'questions'"):
        read_16_personalities(path)


def test_the_public_16_personalities() -> None:
    path = public("incharacter/data/questionnaires/16Personalities.json")
    found = read_16_personalities(path)
    assert Counter(item.trait for item in found.items) == {"E/I": 13, "S/N": 12, "T/F": 20, "P/J": 15}
    reverse = set(json.loads(path.read_text(encoding="utf-8"))["reverse"])
    assert [n for n, item in enumerate(found.items, 1) if (item.key == -1) != (n in reverse)] == [25]
