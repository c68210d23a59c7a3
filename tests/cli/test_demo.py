"""`personae demo`, with a tiny model in the place of the default one."""

from __future__ import annotations

from pathlib import Path

import pytest

import personae.models
from cli_helpers import Cli
from personae.runtime import PersonaModel
from personae.subnetwork import load


def test_demo(cli: Cli, llama: Path, contrast: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = personae.models.load_model
    asked: list[object] = []

    def small(name: str | None = None, **options: object) -> object:
        asked.append(name)
        return real(llama, dtype="float32", device="cpu")

    def chat(self: PersonaModel, message: str, **options: object) -> str:
        return f"[/INST] {message} from {','.join(self.active) or 'nobody'}"

    monkeypatch.setattr(personae.models, "load_model", small)
    monkeypatch.setattr(PersonaModel, "chat", chat)
    ended = cli("demo", "--contrast", contrast, "--question", "Who [is] it?")
    assert ended.code == 0, ended.err
    assert asked == [None]
    assert load(here / "loud-quiet.persona").names == ("loud", "quiet")
    assert "loud against quiet" in ended.out
    for who in ("nobody", "loud", "quiet"):
        assert f"[/INST] Who [is] it? from {who}" in ended.out
    assert str(here / "loud-quiet.persona") in ended.out


def test_bad_input_stops_it_before_the_model(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personae.models, "load_model", lambda *_, **__: pytest.fail("nothing to load"))
    assert "Did you mean introvert-extravert" in cli("demo", "--contrast", "introvert-extrovert").err
    ended = cli("demo", "-o", "nowhere/x.persona")
    assert ended.code == 2
    assert "there is no directory" in ended.err
