"""`personae eval`: the table and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli, write_contrast
from personae.evaluation import from_dict, score_items, to_markdown
from personae.evaluation.retrieval import with_examples
from personae.evaluation.scoring import score_encoded
from personae.models import load_model
from personae.personas import Contrast, load_contrast, split


@pytest.fixture
def tested(here: Path) -> Path:
    """12 pairs of the same poles that ask other questions than the contrast of the room."""
    path = write_contrast(here / "tested.jsonl", pairs=12)
    path.write_text(path.read_text().replace("talk about", "write to me about"))
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here must be refused before anything is loaded."""
    monkeypatch.setattr("personae.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def test_the_table(cli: Cli, llama: Path, contrast: Path, artefact: Path, here: Path) -> None:
    ended = cli("eval", contrast, artefact, "--model", llama, "--random-seeds", "2", "--resamples", "50")
    assert ended.code == 0, ended.err
    for condition in ("base", "system prompt", "directed", "random", "magnitude", "generic", "opposite"):
        assert f" {condition} " in ended.out
    assert "loud against quiet" in ended.out
    assert "…" not in ended.out  # no figure is cut where stdout is no terminal
    assert not list(here.iterdir())


def test_json_is_alone_on_stdout_and_can_be_written_too(
    cli: Cli, llama: Path, contrast: Path, artefact: Path, here: Path
) -> None:
    ended = cli(
        "eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--method", "random", "--all-items",
        "--resamples", "50", "--json", "-o", "result.json",
    )  # fmt: skip
    assert ended.code == 2  # --method calibrates: it needs a split
    assert "--method" in ended.err
    assert not list(here.iterdir())
    ended = cli(
        "eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--method", "random",
        "--resamples", "50", "--json", "-o", "result.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = from_dict(ended.json)
    assert [row.name for row in result.rows] == ["base", "system prompt", "directed", "random", "magnitude"]
    assert json.loads((here / "result.json").read_text()) == ended.json
    assert [p.name for p in here.iterdir()] == ["result.json"]


def test_all_items_say_that_they_calibrated(cli: Cli, llama: Path, contrast: Path, artefact: Path) -> None:
    words = ("eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--resamples", "20", "--all-items")
    ended = cli(*words, "--json")
    assert ended.json["data"]["items"] == 30
    assert any("discovery has read" in note for note in ended.json["notes"])
    assert "warning: " in ended.err


def test_the_users_own_texts_measure_the_capability_loss_on_the_artefacts_targets(
    cli: Cli, llama: Path, contrast: Path, here: Path
) -> None:
    (here / "plain.txt").write_text("The sea was calm and the boats lay still. " * 60)
    chat = [{"prompt": f"Say {n} words.", "answer": "one two three"} for n in range(6)]
    (here / "chat.jsonl").write_text("\n".join(map(json.dumps, chat)))
    made = cli(
        "discover", contrast, "--model", llama, "--cheap-share", "0.3", "--drop-share", "0.02", "--target", "*mlp*",
        "--tokens", "all", "--generic-text", "plain.txt", "-o", "mlp.persona", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    ended = cli(
        "eval", contrast, "mlp.persona", "--model", llama, "--plain-text", "plain.txt", "--chat-text", "chat.jsonl",
        "--generic-text", "plain.txt", "--resamples", "20", "--control", "random", "--random-seeds", "1", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = from_dict(ended.json)
    assert result.text.chat_answers == 6
    assert "plain.txt" in result.text.name
    # sparsity counts over the targets of the artefact, so mask and control drop the same share of them
    assert abs(result["directed"].sparsity - 0.02) < 0.002
    assert abs(result["random"].sparsity - 0.02) < 0.002
    assert not any("generic text" in note for note in result.notes)


def test_one_sided_data_are_refused(cli: Cli, llama: Path, here: Path) -> None:
    (here / "singer.jsonl").write_text('{"prompt": "What?", "answer": "I sing."}\n')
    ended = cli("eval", "singer.jsonl", "--model", llama)
    assert ended.code == 2
    assert "is one-sided; evaluation compares two answers" in ended.err


# --- items of the user's own ------------------------------------------------------------------------------------


def test_rivals_calibrate_on_what_the_artefact_was_made_from(
    cli: Cli, llama: Path, contrast: Path, artefact: Path, tested: Path
) -> None:
    rivals = ("retrieval", "steering", "lora-sft")
    ended = cli(
        "eval", tested, artefact, "--calibration", contrast, *(w for r in rivals for w in ("--rival", r)),
        "--control", "random", "--random-seeds", "1", "--resamples", "20", "--model", llama, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = from_dict(ended.json)
    assert [row.name for row in result.rows] == ["base", "system prompt", *rivals, "directed", "random"]
    parts, items = split(load_contrast(contrast)), load_contrast(tested)
    assert isinstance(items, Contrast)
    data = result.data
    assert (data.items, data.split_seed, data.test_sha256) == (12, None, items.sha256)
    assert (data.calibration_sha256, data.dev_sha256) == (parts.calibration.sha256, parts.dev.sha256)
    model, tokenizer = load_model(llama)
    asked = with_examples(model, tokenizer, items, parts.calibration)
    reading = result["retrieval"].readings[0]
    for read, side in zip((reading.difference, reading.difference_opposite), asked, strict=True):
        assert read == pytest.approx(score_encoded(model, side).difference().tolist(), abs=1e-4)
    assert not any("calibrated" in note for note in result.notes)


def test_an_artefact_of_all_items_shares_all_of_them_with_its_rivals(
    cli: Cli, llama: Path, contrast: Path, tested: Path, here: Path
) -> None:
    (here / "plain.txt").write_text("The sea was calm and the boats lay still. " * 60)
    words = ("--model", llama, "--generic-text", "plain.txt", "--json")
    shares = ("--cheap-share", "0.3", "--drop-share", "0.02")
    assert cli("discover", contrast, "--all-items", *shares, "-o", "all.persona", *words).code == 0
    ended = cli(
        "eval", tested, "all.persona", "--calibration", contrast, "--rival", "retrieval", "--control", "magnitude",
        "--resamples", "20", *words,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    whole = load_contrast(contrast)
    data = ended.json["data"]
    assert (data["calibration_sha256"], data["dev_sha256"]) == (whole.sha256, whole.sha256)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--calibration", "nowhere/mine.jsonl"), "--calibration: nowhere/mine.jsonl: there is no such file"),
        (("--calibration", "introvert-extrovert"), "--calibration: 'introvert-extrovert' is no built-in contrast"),
        (("--calibration", "introvert-extravert"), "has no 'loud': choose positive from"),
        (("--calibration", "mine.jsonl"), "calibration items 'loud-quiet' are tested in 'loud-quiet' too"),
        (("--calibration", "singer.jsonl"), "--calibration: singer.jsonl is one-sided; give both poles"),
        (("--calibration", "three.jsonl"), "has no items of at least one pole"),
        (("--calibration", "three.jsonl", "--all-items"), "tests every item of CONTRAST already"),
        (("--second-model", "there", "--all-items"), "give a split, or --calibration FILE"),
    ],
)
def test_calibration_that_cannot_serve(cli: Cli, tested: Path, here: Path, words: tuple[str, ...], says: str) -> None:
    (here / "singer.jsonl").write_text('{"prompt": "What?", "answer": "I sing."}\n')
    write_contrast(here / "three.jsonl", pairs=3)
    mine = write_contrast(here / "mine.jsonl")  # its first 12 questions are those that are tested
    mine.write_text(mine.read_text().replace("talk about", "write to me about"))
    ended = cli("eval", tested, *words)
    assert ended.code == 2
    assert says in " ".join(ended.err.split())


@pytest.mark.usefixtures("no_model")
def test_an_output_never_replaces_the_calibration_items(cli: Cli, contrast: Path, tested: Path, here: Path) -> None:
    own = write_contrast(here / "own.jsonl")
    ended = cli("eval", tested, "--calibration", own, "-o", "own.jsonl")
    assert ended.code == 2
    assert "would replace" in ended.err
    assert own.read_bytes() == write_contrast(here / "again.jsonl").read_bytes()


@pytest.mark.usefixtures("no_model")
def test_an_output_never_replaces_the_other_artefact(cli: Cli, contrast: Path, artefact: Path, here: Path) -> None:
    other = here / "other.persona"
    other.write_bytes(artefact.read_bytes())
    ended = cli("eval", contrast, artefact, "--other", other, "-o", "other.persona")
    assert ended.code == 2
    assert "would replace" in ended.err
    assert other.read_bytes() == artefact.read_bytes()


# --- a second model ---------------------------------------------------------------------------------------------


def test_a_second_model_stands_below_with_its_own_base_row(
    cli: Cli, llama: Path, other_llama: Path, contrast: Path, artefact: Path, here: Path
) -> None:
    words = ("eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--resamples", "20")
    alone = from_dict(cli(*words, "--json").json)
    ended = cli(*words, "--second-model", other_llama, "-o", "both.json")
    assert ended.code == 0, ended.err
    result = from_dict(json.loads((here / "both.json").read_text()))
    assert result.rows[:-3] == alone.rows  # nothing above them has changed, claims included
    names = ("base (other)", "system prompt (other)", "retrieval (other)")
    assert tuple(row.name for row in result.rows[-3:]) == names
    model: Any
    model, tokenizer = load_model(other_llama)
    test = split(load_contrast(contrast)).test
    assert result["base (other)"].acc.value == score_items(model, tokenizer, test).acc()
    assert result["system prompt (other)"].acc.value == score_items(model, tokenizer, test, "Be loud.").acc()
    assert result["system prompt (other)"].acc_opposite.value == score_items(model, tokenizer, test, "Be quiet.").acc()
    assert result["base (other)"].readings != result["base"].readings
    page = to_markdown(result)
    for name in names:
        assert f"| {name} |" in page
    for name in ("base (other)", "system prompt", "retrieval (other)", "a second model"):
        assert name in ended.out


def test_a_second_model_that_is_not_there_is_told_before_anything_is_measured(
    cli: Cli, llama: Path, contrast: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personae.evaluation.evaluate", lambda *_, **__: pytest.fail("measured"))
    ended = cli("eval", contrast, "--model", llama, "--second-model", "./nothing", "-o", "table.json")
    assert ended.code == 2
    assert "there is no folder" in ended.err
    assert not list(here.iterdir())
