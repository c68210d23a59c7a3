from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personae.discovery import GenericText
from personae.errors import DataError
from personae.evaluation import CapabilityText, capability_text, unread_text
from personae.models import Encoded, encode


def numbered(count: int, first: int) -> tuple[Encoded, ...]:
    return tuple(Encoded((1,), (first + i,)) for i in range(count))


def test_the_default_is_what_no_budget_search_has_read() -> None:
    generic = GenericText(numbered(2 * 8 + 8, 0), numbered(2 * 24 + 6, 1000), "sampled")
    found, searched = unread_text(generic), generic.held_out.read
    assert len(found.plain) == 4
    assert len(found.chat) == 3
    assert not set(found.plain) & set(searched.plain)
    assert not set(found.chat) & set(searched.chat)
    assert set(found.plain) <= set(generic.held_out.plain)
    assert found.name == "sampled (held out)"


def test_too_little_text_is_read_again_and_says_so() -> None:
    found = unread_text(GenericText(numbered(4, 0), numbered(2 * 24 + 6, 100), "short"))
    assert found.plain == numbered(4, 0)[1::2]
    assert found.name == "short (held out; plain text also read by the budget search)"
    assert "chat text also read" in unread_text(GenericText(numbered(99, 0), numbered(4, 100), "short")).name


def test_files_of_the_user(tmp_path: Path, model_and_tokenizer: Any, generic: GenericText) -> None:
    _, tokenizer = model_and_tokenizer
    plain, chat = tmp_path / "plain.txt", tmp_path / "chat.jsonl"
    plain.write_text("A sentence about nothing in particular. " * 400)
    rows = [{"prompt": f"Q{n}?", "answer": f"Answer {n}."} for n in range(5)]
    rows += [{"instruction": f"Q{n}?", "output": f"Answer {n}.", "pole": "T"} for n in range(5, 10)]
    chat.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = capability_text(
        tokenizer, generic, plain_file=plain, chat_file=chat, context=512, plain_windows=3, chat_answers=5
    )
    assert len(found.plain) == 3
    assert found.chat == tuple(encode(tokenizer, f"Q{n}?", f"Answer {n}.") for n in (0, 2, 4, 6, 8))
    assert found.name == "plain: plain.txt, 3 windows; chat: chat.jsonl, 5 answers"
    only_chat = capability_text(tokenizer, generic, chat_file=chat)
    assert len(only_chat.chat) == 10
    assert only_chat.plain == unread_text(generic).plain
    assert "the rest: four of each" in only_chat.name
    assert capability_text(tokenizer, generic) == unread_text(generic)


def test_broken_files_are_named(tmp_path: Path, model_and_tokenizer: Any, generic: GenericText) -> None:
    _, tokenizer = model_and_tokenizer
    with pytest.raises(DataError, match=r"--plain-text: there is no file .*none\.txt"):
        capability_text(tokenizer, generic, plain_file=tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"cannot read .*latin\.txt"):
        capability_text(tokenizer, generic, plain_file=tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt holds no text"):
        capability_text(tokenizer, generic, plain_file=tmp_path / "empty.txt")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"chat\.jsonl, line 2: there is no 'answer'"):
        capability_text(tokenizer, generic, chat_file=tmp_path / "chat.jsonl")


def test_the_hash_follows_the_tokens_and_not_the_name() -> None:
    one = CapabilityText(numbered(2, 0), numbered(2, 5), "one")
    assert one.sha256 == CapabilityText(numbered(2, 0), numbered(2, 5), "two").sha256
    assert one.sha256 != CapabilityText(numbered(2, 5), numbered(2, 0), "one").sha256
    assert one.generic == GenericText(one.plain, one.chat, "one")
