"""RoleAgentBench on a small made-up folder of its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personae.errors import DataError, OptionError
from personae.personas import Sample
from personae.personas.role_agent import load_role_agent


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in content] if path.suffix == ".jsonl" else [json.dumps(content)]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two scripts; the first has two characters and three tasks in three shapes, the second one character."""
    write(tmp_path / "info.json", {"scripts": ["Harbour", "Attic"]})
    harbour = tmp_path / "Harbour"
    write(harbour / "profiles" / "Captain.jsonl", [{"profile": "Owns the boat."}, {"profile": " Fears fog. "}])
    write(harbour / "profiles" / "Cook.jsonl", [{"age": 40}])
    write(harbour / "raw" / "script.json", ["not read"])
    write(
        harbour / "general_response.json",
        [
            {"Role": "Captain", "Question": "Who are you?", "Answer": "The captain, and you are late."},
            {"role": "Cook", "question": "What is for dinner?", "response": ["Soup.", "Soup again."]},
        ],
    )
    write(
        harbour / "reaction.json", {"Captain": [{"query": "Fog ahead!", "output": "Drop the anchor."}], "version": "1"}
    )
    write(harbour / "summary.json", [{"role": "Cook", "question": "The day?", "answer": "Cooking."}])
    attic = tmp_path / "Attic"
    write(attic / "profiles" / "Ghost.jsonl", [{"text": "Dead."}])
    write(attic / "reaction.json", {"data": [{"question": "A cat enters.", "answer": "Boo."}]})
    return tmp_path


def test_all_scripts_of_a_root(root: Path) -> None:
    found = load_role_agent(root)
    assert [p.name for p in found] == ["Attic/Ghost", "Harbour/Captain", "Harbour/Cook"]
    ghost, captain, cook = found
    assert ghost.samples == (Sample("A cat enters.", "Boo."),)  # the only character of its script
    assert captain.samples == (
        Sample("Who are you?", "The captain, and you are late."),
        Sample("Fog ahead!", "Drop the anchor."),
    )
    assert cook.samples == (Sample("What is for dinner?", "Soup."), Sample("What is for dinner?", "Soup again."))
    assert (captain.description, cook.description, ghost.description) == ("Owns the boat.\nFears fog.", "", "Dead.")
    assert "Harbour" in captain.source


def test_one_script_and_other_tasks(root: Path) -> None:
    assert [p.name for p in load_role_agent(root / "Harbour", tasks=["reaction"])] == ["Captain"]
    (cook,) = load_role_agent(str(root / "Harbour"), tasks=["summary"])
    assert cook.samples == (Sample("The day?", "Cooking."),)


def test_unknown_tasks_and_layouts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(OptionError, match=r"unknown task singing.*general_response"):
        load_role_agent(root, tasks=["singing"])
    with pytest.raises(OptionError, match="none"):
        load_role_agent(root, tasks=[])
    with pytest.raises(DataError, match="no such folder"):
        load_role_agent(root / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=r"has no info\.json"):
        load_role_agent(empty)
    write(empty / "info.json", {})
    with pytest.raises(DataError, match=r"has info\.json but"):
        load_role_agent(empty)
    with pytest.raises(DataError, match="no character has an answer to retrieval"):
        load_role_agent(root, tasks=["retrieval"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"role": "Cook", "asked": "?", "answer": "Soup."}], r"line 1: no question.*found: role, asked, answer"),
        ([{"role": "Cook", "question": "What?", "said": "Soup."}], r"line 1: no answer"),
        ([{"role": "Cook", "question": "What?", "answer": " "}], "'answer' is empty"),
        ([{"question": "What?", "answer": "Soup."}], r"whose answer is this\?.*2 profiles"),
        ({"rows": [{"question": "What?", "answer": "Soup."}]}, r"'rows', row 1: whose answer"),
        ({"Cook": ["Soup."]}, r"'Cook', row 1: a row must be a JSON object, found str"),
    ],
)
def test_broken_rows_are_named(root: Path, rows: Any, message: str) -> None:
    write(root / "Harbour" / "reaction.json", rows)
    with pytest.raises(DataError, match=message):
        load_role_agent(root / "Harbour")
