"""A question and an answer -> token ids, with the chat template and no persona in it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from personae.errors import DataError

_PROBE = "personae"  # an answer to find out what the template writes around answers


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one prompt and of one answer to it (end-of-turn token included)."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


Turns = Sequence[tuple[str, str]]  # earlier questions and their answers, as examples


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None = None, history: Turns = ()
) -> str:
    """The text the model sees before the answer; `history`: (question, answer) turns before the question.

    With a chat template: the template's own rendering (a default system prompt stays in it); a
    template that refuses the system role gets the system text in front of the question. Without one:
    'Q: …\\nA:'.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        lead = f"{system}\n\n" if system else ""
        earlier = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in history)
        return f"{lead}{earlier}Q: {prompt}\nA:"
    messages = _messages(tokenizer, history[0][0] if history else prompt, system)
    for number, (_, answer) in enumerate(history, 1):
        following = history[number][0] if number < len(history) else prompt
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
    return _template(tokenizer, messages, add_generation_prompt=True)


def render_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """The text of an answer as it follows the prompt: the answer and the end of the turn."""
    if getattr(tokenizer, "chat_template", None) is None:
        return f" {answer}{tokenizer.eos_token or ''}"
    return f"{answer}{end_of_turn(tokenizer)}"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes right after an answer (such as '<|im_end|>'), up to the end of the line.

    The tokenizer's end-of-text token where the template writes nothing there.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return str(tokenizer.eos_token or "")
    opened, whole = _probed(tokenizer)
    after = whole[whole.rindex(_PROBE) + len(_PROBE) :].strip() if _PROBE in whole[len(opened) - 1 :] else ""
    # Some templates (Phi-3) close a finished conversation with a second token on a line of its own.
    return after.splitlines()[0].rstrip() if after else str(tokenizer.eos_token or "")


def answer_lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes between its opening of an answer and the answer, such as an empty block of thoughts.

    An answer that is scored without it stands where the model expects the block to begin. '' for white space alone.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return ""
    opened, whole = _probed(tokenizer)
    lead = whole[len(opened) :].partition(_PROBE)[0] if whole.startswith(opened) and _PROBE in whole else ""
    return lead if lead.strip() else ""


def _probed(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The template's rendering up to an answer, and with the answer `_PROBE`."""
    answered = [*_messages(tokenizer, "?", None), {"role": "assistant", "content": _PROBE}]
    return render_prompt(tokenizer, "?"), _template(tokenizer, answered, add_generation_prompt=False)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    system: str | None = None,
    history: Turns = (),
    context: int | None = None,
) -> Encoded:
    """Token ids of the rendered prompt, with what the template puts before an answer (`answer_lead`), and of the answer
    with its end.

    The answer is never cut; a prompt that leaves no room for it within `context` tokens loses its
    beginning, with a warning. Errors: `DataError` when the answer alone fills the context.
    """
    head = encode_prompt(tokenizer, prompt, system, history, lead=True)
    tail = list(tokenizer(render_answer(tokenizer, answer), add_special_tokens=False)["input_ids"])
    if context is not None and len(head) + len(tail) > context:
        room = context - len(tail)
        if room < 1:
            raise DataError(
                f"an answer of {len(tail)} tokens does not fit the model's context of {context}: "
                f"{answer[:60]!r}…; shorten it, or use a model with a longer context."
            )
        warnings.warn(
            f"a prompt of {len(head)} tokens was cut from the left to {room} "
            f"to fit the context of {context}: {prompt[:60]!r}…",
            stacklevel=2,
        )
        head = head[len(head) - room :]
    return Encoded(tuple(head), tuple(tail))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    system: str | None = None,
    history: Turns = (),
    *,
    lead: bool = False,
) -> list[int]:
    """Token ids of the rendered prompt. lead: with `answer_lead`, for answers that are scored and not generated."""
    # A template writes its own special tokens; adding more would double the begin-of-text token.
    special = getattr(tokenizer, "chat_template", None) is None
    head = list(tokenizer(render_prompt(tokenizer, prompt, system, history), add_special_tokens=special)["input_ids"])
    return head + (list(tokenizer(answer_lead(tokenizer), add_special_tokens=False)["input_ids"]) if lead else [])


def context_length(model: Any) -> int | None:
    """The longest sequence the model takes, in tokens, where its configuration says so."""
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):  # models that also see keep the language model's settings inside
        config = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _messages(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None) -> list[dict[str, str]]:
    user = {"role": "user", "content": prompt}
    if not system:
        return [user]
    messages = [{"role": "system", "content": system}, user]
    try:
        heard = system.strip() in _template(tokenizer, messages, add_generation_prompt=True)
    except Exception:
        heard = False
    # A template may also leave the system message out without a word.
    return messages if heard else [{"role": "user", "content": f"{system}\n\n{prompt}"}]


def _template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
