"""The texts on which capability loss is measured: never those the budget was searched on.

By default what is left of the generic text; better, texts of the user's own (`--plain-text`, `--chat-text`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from personae.discovery import GenericText, windows
from personae.errors import DataError
from personae.models import Encoded, encode
from personae.personas.rows import read_rows

PLAIN_WINDOWS = 32  # of a user's text file, 256 tokens each
CHAT_ANSWERS = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CapabilityText:
    """Plain windows (no prompt, every token counts), chat answers, and a name that says what they are."""

    plain: tuple[Encoded, ...]
    chat: tuple[Encoded, ...]
    name: str

    @property
    def generic(self) -> GenericText:
        """The same text as `discovery.capability` reads it."""
        return GenericText(self.plain, self.chat, self.name)

    @property
    def sha256(self) -> str:
        """Hash of the token ids, in order."""
        body = [[list(e.prompt), list(e.answer)] for part in (self.plain, self.chat) for e in part]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def unread_text(generic: GenericText) -> CapabilityText:
    """The held-out generic text that the budget search did not read.

    Where it read everything of a kind, all of that kind is used again, and the name says so.
    """
    held = generic.held_out
    plain, plain_note = _rest(held.plain, len(held.read.plain), "plain")
    chat, chat_note = _rest(held.chat, len(held.read.chat), "chat")
    return CapabilityText(plain, chat, f"{generic.source} (held out{plain_note}{chat_note})")


def _rest(items: tuple[Encoded, ...], read: int, kind: str) -> tuple[tuple[Encoded, ...], str]:
    if len(items) > read:
        return items[read:], ""
    return items, f"; {kind} text also read by the budget search"


def capability_text(
    tokenizer: PreTrainedTokenizerBase,
    generic: GenericText,
    *,
    plain_file: str | Path | None = None,
    chat_file: str | Path | None = None,
    context: int | None = None,
    plain_windows: int = PLAIN_WINDOWS,
    chat_answers: int = CHAT_ANSWERS,
) -> CapabilityText:
    """Text of the user's files; whatever kind has no file comes from `unread_text(generic)`.

    plain_file: UTF-8 text. chat_file: jsonl of {"prompt", "answer"} or {"instruction", "output"}. context: the
    model's context length. A longer file gives windows, or rows, at even distances over the whole of it.
    Errors: `DataError` naming file and line.
    """
    default = unread_text(generic)
    plain, chat, names = default.plain, default.chat, []
    if plain_file is not None:
        plain = _read_plain(tokenizer, Path(plain_file), plain_windows)
        names.append(f"plain: {Path(plain_file).name}, {len(plain)} windows")
    if chat_file is not None:
        chat = _read_chat(tokenizer, Path(chat_file), context, chat_answers)
        names.append(f"chat: {Path(chat_file).name}, {len(chat)} answers")
    if len(names) < 2:
        names.append(default.name if not names else f"the rest: {default.name}")
    return CapabilityText(plain, chat, "; ".join(names))


def _read_plain(tokenizer: PreTrainedTokenizerBase, path: Path, limit: int) -> tuple[Encoded, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"--plain-text: there is no file {path}; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--plain-text: cannot read {path} ({error}); give a UTF-8 text file.") from error
    found = windows(tokenizer, text)
    if not found:
        raise DataError(f"--plain-text: {path} holds no text.")
    return _evenly(found, limit)


def _read_chat(tokenizer: PreTrainedTokenizerBase, path: Path, context: int | None, limit: int) -> tuple[Encoded, ...]:
    result = []
    for row in _evenly(read_rows(path), limit):
        question, answer = ("prompt", "answer") if "prompt" in row.fields else ("instruction", "output")
        result.append(encode(tokenizer, row.text(question), row.text(answer), context=context))
    return tuple(result)


def _evenly(items: Sequence[T], limit: int) -> tuple[T, ...]:
    """At most `limit` items at even distances: files sorted by topic or by pole are seen all over."""
    if len(items) <= limit:
        return tuple(items)
    return tuple(items[i * len(items) // limit] for i in range(limit))
