"""Bad input: exit code 2, a message that names cause and remedy, nothing written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, T5Config

import personae.models
from cli_helpers import Cli, Ended, files_of, start, write_contrast
from personae.subnetwork import load

SHARES = ("--cheap-share", "0.3", "--drop-share", "0.05")


@dataclass(frozen=True)
class Refusal:
    """Runs the command line, which must refuse and leave every file in `here` as it was."""

    cli: Cli
    here: Path

    def __call__(self, *words: object, says: str | tuple[str, ...]) -> Ended:
        before = files_of(self.here)
        ended = self.cli(*words)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert "Traceback" not in ended.err
        flat = " ".join(ended.err.replace("│", " ").split())
        for part in (says,) if isinstance(says, str) else says:
            assert part in flat
        assert files_of(self.here) == before
        return ended


@pytest.fixture
def refuses(cli: Cli, here: Path, artefact: Path) -> Refusal:
    """`refuses(*words, says=…)`, with an old artefact lying in `here`."""
    (here / "loud-quiet.persona").write_bytes(artefact.read_bytes())
    return Refusal(cli, here)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here must be refused before anything is loaded."""
    monkeypatch.setattr(personae.models, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


# --- data -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["discover", "eval"])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", "", ("empty.jsonl", "the file is empty", "at least one row")),
        ("empty.csv", "question,matching,not_matching\n", ("empty.csv", "at least one")),
        ("columns.csv", "question,right,wrong\nWhat?,this,that\n", ("columns.csv", "question, right, wrong")),
        (
            "broken.jsonl",
            '{"prompt": "A?", "positive": "x", "negative": "y"}\n{"prompt": "B?", "positive": "x", "neg\n',
            ("broken.jsonl, line 2", "broken JSON", "mend it"),
        ),
        (
            "field.jsonl",
            '{"prompt": "A?", "positive": "x", "negative": "y"}\n\n{"prompt": "B?", "positive": "x"}\n',
            ("field.jsonl, line 3", "'negative'", "add it"),
        ),
        ("cells.csv", "question,matching,not_matching\nWhat?,a,b\nWhy?,a,b,c\n", ("cells.csv, line 3", "quote cells")),
        ("bytes.csv", "question,matching,not_matching\n\udce9,a,b\n", ("bytes.csv, line 2", "UTF-8")),
    ],
)
def test_broken_data(
    refuses: Refusal, here: Path, command: str, name: str, content: str, says: tuple[str, ...]
) -> None:
    (here / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    refuses(command, name, says=says)


@pytest.mark.usefixtures("no_model")
def test_data_that_are_not_there(refuses: Refusal) -> None:
    refuses("discover", "introvert-extrovert", says=("no built-in contrast", "Did you mean introvert-extravert"))
    refuses("discover", "nowhere/data.csv", says=("nowhere/data.csv", "there is no such file", "check the path"))
    refuses("discover", ".", says="cannot be read")
    refuses("discover", says="Missing argument")


@pytest.mark.usefixtures("no_model")
def test_poles_and_numbers_that_the_data_do_not_have(refuses: Refusal, contrast: Path) -> None:
    refuses("discover", contrast, "--positive", "shy", says=("has no 'shy'", "choose positive from loud, quiet"))
    refuses("discover", contrast, "--pairs", "31", says=("it has 30", "ask for 1 to 30"))
    refuses("discover", contrast, "--pairs", "0", says="ask for 1 to 30")
    refuses("discover", contrast, "--cross-fit", "1", says="at least 2 folds")
    refuses("discover", contrast, "--cross-fit", "0", says="at least 2 folds")
    refuses("discover", contrast, "--cross-fit", "31", says="too few for 31 folds")
    refuses("discover", contrast, "--cross-fit", "5", "--all-items", says="excludes --all-items")
    for words in (("discover", contrast), ("eval", contrast), ("causal-map", "a.persona", "--contrast", contrast)):
        refuses(*words, "--all-items", "--split-seed", "0", says="--all-items splits nothing")
    refuses("discover", contrast, "--role", "Ann", says="Ann")
    refuses("discover", contrast, "--format", "xml", says="xml")


@pytest.mark.usefixtures("no_model")
def test_a_name_that_no_file_takes_is_refused_before_the_work(refuses: Refusal, here: Path) -> None:
    write_contrast(here / "slash.jsonl", positive="loud/soft")
    refuses("discover", "slash.jsonl", says=("bad persona name 'loud/soft'", "without '/'"))


def test_too_few_items_for_a_split_point_to_cross_fit_which_then_works(
    refuses: Refusal, cli: Cli, llama: Path, here: Path
) -> None:
    write_contrast(here / "three.jsonl", pairs=3)
    words = ("discover", "three.jsonl", "--model", llama, "--method", "wanda", "--sparsity", "0.3")
    refuses(*words, says="--cross-fit")
    assert cli(*words, "--cross-fit", "3", "-o", "three.persona").code == 0


def test_a_prompt_longer_than_the_context_is_cut_with_a_warning_and_an_answer_never(
    refuses: Refusal, cli: Cli, here: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=128)
    small = tmp_path / "small-context"
    model.save_pretrained(small)
    tokenizer.save_pretrained(small)
    answers = ("I would go there at once, yes.", "I would rather stay here.")
    rows = [{"prompt": "x " * 200 + f"{n}?", "positive": answers[0], "negative": answers[1]} for n in range(20)]
    (here / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ended = cli("discover", "long.jsonl", "--model", small, *SHARES, "-o", "long.persona")
    assert ended.code == 0, ended.err
    assert "was cut from the left to" in ended.err
    assert "to fit the context of 128" in ended.err
    scored = cli("eval", "long.jsonl", "long.persona", "--model", small, "--control", "magnitude", "--json")
    assert scored.code == 0, scored.err
    whole = [len(tokenizer(f"{a}<|im_end|>", add_special_tokens=False)["input_ids"]) for a in answers]
    assert all(counted == whole for counted in scored.json["data"]["tokens"])
    rows[7]["positive"] = "y " * 200
    (here / "answer.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refuses(
        "discover",
        "answer.jsonl",
        "--model",
        small,
        *SHARES,
        "--all-items",
        says="does not fit the model's context of 128",
    )


@pytest.mark.parametrize(
    ("option", "name", "content", "says"),
    [
        ("--generic-text", "no.txt", None, "there is no generic text at no.txt"),
        ("--generic-text", "g.jsonl", '{"text": "a"}\n{"txt": "b"}\n', ("g.jsonl, line 2", 'expected "text"')),
        ("--generic-text", "e.txt", "", "e.txt holds no text"),
        ("--plain-text", "no.txt", None, "--plain-text: there is no file no.txt"),
        (
            "--chat-text",
            "c.jsonl",
            '{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n',
            ("c.jsonl, line 2", "'answer'"),
        ),
    ],
)
def test_broken_texts(
    refuses: Refusal,
    contrast: Path,
    llama: Path,
    here: Path,
    option: str,
    name: str,
    content: str | None,
    says: str | tuple[str, ...],
) -> None:
    if content is not None:
        (here / name).write_text(content)
    refuses("eval", contrast, "loud-quiet.persona", "--model", llama, option, name, says=says)
    if option == "--generic-text":
        refuses("discover", contrast, "--model", llama, *SHARES, option, name, says=says)


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("value", ["0", "1", "-1", "2", "nan", "inf"])
@pytest.mark.parametrize(
    "words",
    [
        ("--method", "wanda", "--sparsity"),
        ("--isolated", "--sparsity"),
        ("--cheap-share", "0.1", "--drop-share"),
        ("--cheap-share",),
    ],
    ids=" ".join,
)
def test_shares_outside_0_and_1(refuses: Refusal, contrast: Path, words: tuple[str, ...], value: str) -> None:
    refuses("discover", contrast, *words, value, says=(words[-1], "must lie between 0 and 1"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--max-capability-loss", "0.05", "--cheap-share", "0.1"),
            ("--max-capability-loss", "excludes --cheap-share"),
        ),
        (("--max-capability-loss", "0.05", "--drop-share", "0.1"), ("--max-capability-loss", "excludes --drop-share")),
        (("--max-capability-loss", "0.05", "--sparsity", "0.1"), ("--max-capability-loss", "excludes --sparsity")),
        (
            ("--method", "wanda", "--max-capability-loss", "0.05", "--n-m", "2:4"),
            ("--max-capability-loss", "excludes --n-m"),
        ),
        (("--isolated",), "--isolated needs --method directed and --sparsity"),
        (("--isolated", "--method", "wanda", "--sparsity", "0.5"), "--isolated needs --method directed"),
        (("--isolated", "--sparsity", "0.5", "--cheap-share", "0.1"), "excludes --cheap-share and --drop-share"),
        (("--isolated", "--sparsity", "0.5", "--drop-share", "0.1"), "excludes --cheap-share and --drop-share"),
        (("--sparsity", "0.5"), "--method directed takes --drop-share"),
        (("--method", "wanda", "--drop-share", "0.1"), "wanda takes --sparsity"),
        (("--method", "wanda", "--cheap-share", "0.1"), "wanda takes --sparsity"),
        (("--n-m", "2:4"), "--n-m belongs to the scores"),
        (("--method", "wanda", "--n-m", "2:4", "--sparsity", "0.5"), "excludes --sparsity"),
        (("--method", "wanda", "--n-m", "2:4", "--selection", "global"), "excludes --selection target and global"),
        (("--method", "wanda", "--n-m", "4:2"), "smaller than M"),
        (("--method", "wanda", "--n-m", "two"), "write two numbers"),
        (("--method", "magic"), ("unknown method 'magic'", "choose directed, directed-forward, wanda")),
        (("--selection", "column"), ("unknown --selection 'column'", "choose row, target, global")),
        (("--statistic", "max"), "choose mean_abs, l2"),
        (("--phi", "tanh"), "choose relu, softplus"),
        (("--tokens", "none"), "choose answer, all"),
        (("--rank-by", "luck"), "choose gain, gain-per-price"),
        (("--objective", "fame"), "choose margin, log-sigmoid"),
        (("--own-weight", "-1"), "must be 0 or more"),
        (("--max-capability-loss", "0"), "must be a positive number"),
        (("--max-capability-loss", "nan"), "must be a positive number"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(2**40)), "--seed"),
        (("--sparsity", "half"), "--sparsity"),
        (("--no-such-option",), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options_out_of_range_or_at_odds(
    refuses: Refusal, contrast: Path, words: tuple[str, ...], says: str | tuple[str, ...]
) -> None:
    refuses("discover", contrast, *words, says=says)


def test_target_patterns_devices_and_dtypes(refuses: Refusal, contrast: Path, llama: Path) -> None:
    words = ("discover", contrast, "--model", llama)
    refuses(*words, "--target", "*banana*", says=("'*banana*' matches no weight", "names look like"))
    refuses(*words, "--dtype", "int3", says=("unknown dtype 'int3'", "choose auto, float32"))
    refuses(*words, "--device", "abacus", says=("unknown device 'abacus'", "choose auto, cpu"))


def test_options_of_eval(refuses: Refusal, contrast: Path, llama: Path) -> None:
    words = ("eval", contrast, "loud-quiet.persona", "--model", llama)
    for option, value, says in (
        ("--control", "luck", "choose random, magnitude, generic, opposite"),
        ("--method", "magic", "choose directed"),
        ("--match", "size", "choose sparsity"),
        ("--random-seeds", "0", "at least 1"),
        ("--resamples", "0", "at least 1"),
        ("--seed", "-1", "--seed"),
    ):
        refuses(*words, option, value, says=(option, says))


# --- artefacts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: len(b) // 2], "truncated or damaged"),
        (lambda b: b[:5], "truncated or damaged"),
        (lambda b: b"", "truncated or damaged"),
        (lambda b: b"PK\x03\x04 a foreign file " * 40, "not a .persona file"),
        (lambda b: b[:-3] + bytes([b[-3] ^ 16]) + b[-2:], "does not match its hash"),
        (lambda b: b[:400] + bytes([b[400] ^ 1]) + b[401:], "altered"),
    ],
    ids=["half", "five bytes", "empty", "foreign", "payload bit", "header"],
)
@pytest.mark.usefixtures("no_model")
def test_damaged_artefacts(
    refuses: Refusal, contrast: Path, here: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    path = here / "loud-quiet.persona"
    path.write_bytes(damage(path.read_bytes()))
    refuses("chat", path, "--message", "Hello?", says=(str(path), says))
    refuses("eval", contrast, path, says=(str(path), says))
    if "hash" not in says:  # `list` reads no payload
        refuses("list", path, says=(str(path), says))


@pytest.mark.usefixtures("no_model")
def test_artefacts_that_are_not_there(refuses: Refusal, contrast: Path) -> None:
    for words in (("chat", "no.persona"), ("eval", contrast, "no.persona"), ("list", "no.persona"), ("list", ".")):
        refuses(*words, says=("cannot read" if words[-1] != "." else ".", "persona"))


def test_an_artefact_of_another_model(
    refuses: Refusal, cli: Cli, contrast: Path, other_llama: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    worn = ("-p", "loud", "--message", "Hello?", "--max-new-tokens", "2")
    refuses("chat", "loud-quiet.persona", "--model", other_llama, *worn, says="other weights")
    refuses("eval", contrast, "loud-quiet.persona", "--model", other_llama, says="other weights")
    allowed = cli("chat", "loud-quiet.persona", "--model", other_llama, *worn, "--allow-other-weights")
    assert allowed.code == 0
    assert "warning: " in allowed.err
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "plain.txt").write_text("The sea was calm. " * 200)
    for more in ((), ("--allow-other-weights",)):
        refuses(
            "chat",
            "loud-quiet.persona",
            "--model",
            tmp_path / "gpt2",
            *worn,
            *more,
            says="the model has no such target",
        )
        refuses(
            "eval", contrast, "loud-quiet.persona", "--model", tmp_path / "gpt2", *more,
            "--plain-text", tmp_path / "plain.txt", says="the model has no such target",
        )  # fmt: skip


def test_a_contrast_whose_poles_the_artefact_does_not_have(refuses: Refusal, llama: Path, contrast: Path) -> None:
    says = ("the artefact holds loud, quiet", "name the poles as in the artefact")
    refuses("eval", "formal-casual", "loud-quiet.persona", "--model", llama, says=says)


# --- saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_full_disk_while_saving(
    refuses: Refusal, contrast: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    says = ("cannot write loud-quiet.persona: No space left on device", "Nothing was changed", "has space")
    refuses("discover", contrast, "--model", llama, *SHARES, says=says)


def test_a_full_disk_while_writing_the_table(
    refuses: Refusal, contrast: Path, llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (here / "old.json").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    refuses(
        "eval", contrast, "--model", llama, "--resamples", "20", "-o", "old.json",
        says=("cannot write old.json: No space left on device", "name another --output"),
    )  # fmt: skip


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("words", [("discover",), ("eval",)])
def test_places_that_cannot_be_written(
    refuses: Refusal, contrast: Path, here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("content")
    refuses(*words, contrast, "-o", "file/x.persona", says=("--output file/x.persona", "there is no directory"))
    refuses(*words, contrast, "-o", "no/x.persona", says=("there is no directory", "make it, or name another"))
    refuses(*words, contrast, "-o", ".", says=("is a directory", "name a file"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # a read-only folder, for the super-user too
    refuses(*words, contrast, "-o", "x.persona", says=("is not writable", "another directory"))


@pytest.mark.usefixtures("no_model")
def test_an_output_never_replaces_what_is_read(refuses: Refusal, here: Path) -> None:
    data = write_contrast(here / "data.jsonl")
    (here / "text.txt").write_text("text")
    says = ("would replace", "name another file")
    refuses("discover", data, "-o", "data.jsonl", says=says)
    refuses("discover", data, "--generic-text", "text.txt", "-o", "text.txt", says=says)
    refuses("eval", data, "loud-quiet.persona", "-o", "./loud-quiet.persona", says=says)
    refuses("eval", data, "--plain-text", "text.txt", "-o", "text.txt", says=says)


# --- models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["discover", "eval", "chat"])
def test_models_that_are_no_causal_language_models(
    refuses: Refusal, contrast: Path, tmp_path: Path, command: str
) -> None:
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    T5Config(d_model=32, num_layers=1, num_heads=2).save_pretrained(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a model")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    data = () if command == "chat" else (contrast,)
    for name, says in (
        ("bert", ("is a Bert model", "not a causal")),
        ("t5", ("is a T5 model", "not a causal")),
        ("empty", "cannot load"),
        ("notes.txt", "cannot load"),
        ("broken.gguf", "cannot load"),
        ("nothing", "there is no folder"),
        ("nothing.gguf", "there is no GGUF file"),
    ):
        refuses(
            command,
            *data,
            "--model",
            tmp_path / name,
            says=(str(tmp_path / name), *([says] if isinstance(says, str) else says)),
        )


def test_without_a_network_the_answer_comes_at_once(contrast: Path, here: Path, tmp_path: Path) -> None:
    """And at once: whoever tries again sleeps in between, and this process may not."""
    code = "import time\nfrom personae.cli import main\ntime.sleep = lambda _: 1 / 0\nmain()"
    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        process = start(
            "discover", contrast, "--model", "owner/name", cwd=here, code=code, HF_HOME=str(tmp_path / "hub"),
            HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}",
        )  # fmt: skip
        printed, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert printed == ""
    assert "owner/name is not on this machine and the Hub cannot be reached" in said
    assert "Check the network, or name a folder" in said
    assert "Traceback" not in said
    assert not list(here.iterdir())


def test_a_persona_without_masks_for_it_is_never_the_base_model(refuses: Refusal, here: Path, llama: Path) -> None:
    made = load(here / "loud-quiet.persona")
    replace(made, personas={}).save(here / "none.persona")
    refuses("chat", "none.persona", "--model", llama, "-p", "loud", "--message", "Hello?", says="there are: none")
