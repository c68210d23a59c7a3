"""Inspect on a worn persona: its answers are those of PersonaModel.chat, from a local task and with its own scorers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from personae.errors import DataError, OptionError, UnknownPersonaError
from personae.models import load_model
from personae.personas import Contrast
from personae.runtime import PersonaModel

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")

from inspect_ai import Task, eval
from inspect_ai.dataset import json_dataset
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import match
from inspect_ai.solver import generate, system_message
from inspect_ai.tool import ToolInfo

from personae.evaluation.inspect_model import chat_options, text_messages

QUESTIONS = ("What about boats?", "What about letters?", "What would you do on a free Saturday?")
TOKENS = 12


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))


@pytest.fixture
def saved(tmp_path: Path, model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any) -> tuple[Path, Path]:
    """(folder of the tiny model, artefact of 'loud' and 'quiet')."""
    model, tokenizer = model_and_tokenizer
    folder, path = tmp_path / "model", tmp_path / "loud.persona"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artefact_of(model, contrast, share=0.1).save(path)
    return folder, path


def chats(saved: tuple[Path, Path], persona: str | None, strength: float = 1.0, **options: Any) -> list[str]:
    """The answers of PersonaModel alone."""
    actor = PersonaModel(*load_model(saved[0]))
    if persona:
        actor.add_personas(saved[1])
        actor.set_persona(persona, strength)
    given = {"system": "You are loud.", "max_new_tokens": TOKENS} | options
    return [actor.chat(question, **given) for question in QUESTIONS]


def run(saved: tuple[Path, Path], persona: str | None, targets: list[str], folder: Path, **options: Any) -> EvalLog:
    """One Inspect evaluation of a local file; the log as it is read back from disk."""
    data = folder / "questions.jsonl"
    rows = [{"input": question, "target": target} for question, target in zip(QUESTIONS, targets, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(dataset=json_dataset(str(data)), solver=[system_message("You are loud."), generate()], scorer=match())
    arguments = {"persona": str(saved[1]), "name": persona} if persona else {}
    strength = options.pop("strength", None)
    [log] = eval(
        task, model=f"personae/{saved[0]}", model_args=arguments | ({"strength": strength} if strength else {}),
        log_dir=str(folder / "logs"), display="none", **{"max_tokens": TOKENS, **options},
    )  # fmt: skip
    return read_eval_log(log.location)


def answers(log: EvalLog) -> list[str]:
    assert log.status == "success", log.error
    assert log.samples
    return [sample.output.completion for sample in sorted(log.samples, key=lambda s: int(s.id))]


def test_the_entry_point_names_this_module() -> None:
    found = {point.value for point in importlib.metadata.entry_points(group="inspect_ai", name="personae")}
    if not found:
        pytest.skip("the installed package has no entry point yet: install it anew")
    assert found == {"personae.evaluation.inspect_model"}


@pytest.mark.parametrize("persona", ["loud", "quiet", None])
def test_answers_and_scores_are_those_of_chat(saved: tuple[Path, Path], tmp_path: Path, persona: str | None) -> None:
    expected = chats(saved, persona)
    targets = [expected[0], "something else entirely", expected[2]]
    log = run(saved, persona, targets, tmp_path)
    assert answers(log) == expected
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(2 / 3)
    if persona:
        assert expected != chats(saved, None)
        assert expected != chats(saved, "quiet" if persona == "loud" else "loud")


def test_options_reach_chat(saved: tuple[Path, Path], tmp_path: Path) -> None:
    sampled = {"temperature": 1.3, "top_p": 0.9, "seed": 7}
    expected = chats(saved, "loud", 0.5, **sampled)
    assert answers(run(saved, "loud", ["x"] * 3, tmp_path, strength=0.5, **sampled)) == expected
    assert expected != chats(saved, "loud", 0.5)
    assert expected != chats(saved, "loud", 1.0, **sampled)
    whole = chats(saved, "loud")
    stop = whole[0][3:5]  # inside the first answer, so that it must end there
    stopped = answers(run(saved, "loud", ["x"] * 3, tmp_path, stop_seqs=[stop]))
    assert stopped == chats(saved, "loud", stop=[stop])
    assert len(stopped[0]) < len(whole[0])


def test_usage_counts_tokens(saved: tuple[Path, Path], tmp_path: Path) -> None:
    log = run(saved, "loud", ["x"] * 3, tmp_path)
    _, tokenizer = load_model(saved[0])
    assert log.samples
    for sample in log.samples:
        prompt = tokenizer.apply_chat_template(
            [{"role": "system", "content": "You are loud."}, {"role": "user", "content": str(sample.input)}],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        usage = sample.output.usage
        assert usage is not None
        assert usage.input_tokens == len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_wrong_arguments_are_refused(saved: tuple[Path, Path]) -> None:
    model, path = f"personae/{saved[0]}", str(saved[1])
    with pytest.raises(UnknownPersonaError, match="calm"):
        get_model(model, persona=path, name="calm")
    with pytest.raises(OptionError, match="belong together"):
        get_model(model, persona=path)
    with pytest.raises(OptionError, match="belong together"):
        get_model(model, name="loud")
    with pytest.raises(OptionError, match="unknown model arguments colour"):
        get_model(model, colour="red")
    with pytest.raises(OptionError, match="unknown dtype"):
        get_model(model, dtype="int3")


@pytest.mark.anyio
async def test_tools_are_refused(saved: tuple[Path, Path]) -> None:
    api = get_model(f"personae/{saved[0]}").api
    with pytest.raises(OptionError, match="no tools"):
        await api.generate([ChatMessageUser(content="x")], [ToolInfo(name="t", description="d")], "auto", _plain())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _plain() -> GenerateConfig:
    return GenerateConfig()


@pytest.mark.parametrize(
    "asked",
    [{"logprobs": True}, {"top_k": 5}, {"num_choices": 2}, {"frequency_penalty": 0.5}, {"logit_bias": {1: 2.0}}],
)
def test_options_that_chat_has_not_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(asked))):
        chat_options(GenerateConfig(**asked))


def test_options_left_alone_are_those_of_chat() -> None:
    assert chat_options(GenerateConfig(num_choices=1, logprobs=False)) == {
        "max_new_tokens": 200, "temperature": 0.0, "top_p": 1.0, "seed": None, "stop": None,
    }  # fmt: skip


def test_messages_become_plain_text() -> None:
    history = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="Hello")]),
        ChatMessageAssistant(content="Yes?"),
        ChatMessageUser(content="Go on."),
    ]
    assert [(m["role"], m["content"]) for m in text_messages(history)] == [
        ("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Go on."),
    ]  # fmt: skip
    with pytest.raises(DataError, match="message 1 holds image"):
        text_messages([history[0], ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])])
