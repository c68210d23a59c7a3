"""Generic text: what a mask must leave alone. Plain text, and ordinary answers in the chat template.

By default the model writes both itself: sampled at temperature 1 they are draws from its own
distribution, so the rise of their negative log-likelihood under a mask estimates the KL divergence
from the base model, and no data has to be fetched. Seeded, and cached per model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from personae.errors import DataError, OptionError
from personae.files import replacing
from personae.models import (
    Encoded,
    Target,
    cache_directory,
    context_length,
    encode,
    encode_prompt,
    end_of_turn,
    fingerprint,
    surroundings,
)
from personae.personas.rows import rows_of_text

WINDOW = 256  # tokens of a window of plain text
ANSWER_TOKENS = 96  # longest sampled answer
READ_ANSWERS = 24  # chat answers that each probe of the budget reads by default, and the price at most


@dataclass(frozen=True, slots=True)
class GenericText:
    """Plain windows (prompt empty, every token counts) and chat answers; `source` says where they come from.

    One half of each, every second text, calibrates (`cheap`), the other half measures (`held_out`). Cheapness is
    one forward pass and reads its whole half; each probe of the budget reads `answers` chat answers of its half and a
    third as many plain windows, and so does the price of weights (a backward pass a text), but no more than
    `READ_ANSWERS`. More answers make a budget that was kept here more likely to be kept on other text, and cost time in
    proportion.
    """

    plain: tuple[Encoded, ...]
    chat: tuple[Encoded, ...]
    source: str
    answers: int = READ_ANSWERS

    @property
    def cheap(self) -> GenericText:
        """The half from which cheapness is computed."""
        return replace(self, plain=self.plain[0::2], chat=self.chat[0::2])

    @property
    def held_out(self) -> GenericText:
        """The other half, on which capability loss is measured while a budget is searched."""
        return replace(self, plain=self.plain[1::2], chat=self.chat[1::2])

    @property
    def read(self) -> GenericText:
        """What the price (of `cheap`) and the budget search (of `held_out`) read of it."""
        return replace(self, plain=self.plain[: math.ceil(self.answers / 3)], chat=self.chat[: self.answers])

    @property
    def sha256(self) -> str:
        """Hash of the token ids, in order."""
        body = [[list(e.prompt), list(e.answer)] for part in (self.plain, self.chat) for e in part]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def windows(
    tokenizer: PreTrainedTokenizerBase, text: str, *, size: int = WINDOW, limit: int | None = None
) -> tuple[Encoded, ...]:
    """Plain text cut into windows of `size` tokens; a last piece shorter than half a window is left out.

    Every window begins with the begin-of-text token where the tokenizer writes one: models that were trained
    with it are lost without it.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    empty = tokenizer("")["input_ids"]
    lead = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []
    step = size - len(lead)
    pieces = [lead + ids[i : i + step] for i in range(0, len(ids), step)]
    whole = [p for p in pieces if len(p) >= min(size // 2, len(ids))]
    return tuple(Encoded((), tuple(p)) for p in whole[:limit] if len(p) > 1)


def generic_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    targets: Sequence[Target],
    *,
    source: str | Path | None = None,
    answers: int = READ_ANSWERS,
    plain_items: int | None = None,
    chat_items: int | None = None,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> GenericText:
    """Generic text for cheapness and for the capability budget.

    source: None samples from the model (cached); a text file gives plain windows; a jsonl of
    {"text"} and/or {"prompt", "answer"} rows gives either kind; 'hub:owner/name' reads the same rows
    from the Hub. Whatever kind the source lacks is sampled. answers: how many each probe of the budget reads
    (`GenericText`); four times as many are gathered, and a third of that of plain windows, unless chat_items and
    plain_items say otherwise. Errors: `DataError` naming file and line; `OptionError` for fewer than one answer.
    """
    if answers < 1:
        raise OptionError(f"--generic-answers is {answers}: it must be at least 1.")
    most_chat = 4 * answers if chat_items is None else chat_items
    most_plain = math.ceil(4 * answers / 3) if plain_items is None else plain_items
    plain: tuple[Encoded, ...] = ()
    chat: tuple[Encoded, ...] = ()
    if source is not None:
        plain, chat = read_generic(tokenizer, source, context_length(model))
        plain, chat = plain[:most_plain], chat[:most_chat]
        for name, part in (("plain windows", plain), ("chat answers", chat)):
            if len(part) == 1:
                raise DataError(
                    f"{source}: one of the {name} calibrates and one measures, but there is only one; add text."
                )
    if plain and chat:
        return GenericText(plain, chat, str(source), answers)
    own_plain, own_chat = _sampled(model, tokenizer, targets, most_plain, most_chat, seed, tick)
    label = "sampled from the model" if source is None else f"{source}; the rest sampled from the model"
    return GenericText(plain or own_plain, chat or own_chat, label, answers)


def read_generic(
    tokenizer: PreTrainedTokenizerBase, source: str | Path, context: int | None
) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...]]:
    """(plain windows, chat answers) of a text file, of rows (.jsonl, .ndjson, .json, .csv), or a Hub data set."""
    if str(source).startswith("hub:"):
        rows = _hub_rows(str(source))
    else:
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise DataError(f"there is no generic text at {path}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read generic text from {path}: {error}.") from error
        if path.suffix.lower() not in {".json", ".jsonl", ".ndjson", ".csv"}:
            plain = windows(tokenizer, text, size=min(WINDOW, context or WINDOW))
            if not plain:
                raise DataError(f"{path} holds no text.")
            return plain, ()
        rows = [(row.where, row.fields) for row in rows_of_text(text, str(path), path.suffix.lower())]
    chat, lines = [], []
    for where, row in rows:
        if isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
            chat.append(encode(tokenizer, row["prompt"], row["answer"], context=context))
        elif isinstance(row.get("text"), str):
            lines.append(row["text"])
        else:
            raise DataError(f'{where}: expected "text", or "prompt" and "answer"; found {sorted(row)}.')
    plain = windows(tokenizer, "\n".join(lines), size=min(WINDOW, context or WINDOW)) if lines else ()
    if not plain and not chat:
        raise DataError(f"{source} holds no text.")
    return plain, tuple(chat)


def _hub_rows(source: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        from datasets import load_dataset  # type: ignore[attr-defined]
    except ImportError as error:
        raise DataError(f'{source} needs the extra: pip install "personae[hub]".') from error
    name, _, split = source.removeprefix("hub:").partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        return [(f"{source}, row {n}", dict(row)) for n, row in enumerate(rows.take(4096))]
    except Exception as error:  # network, unknown name, unknown split: the library raises many kinds
        raise DataError(f"cannot read {source} from the Hub: {type(error).__name__}: {error}") from error


# --- sampling from the model itself ---------------------------------------------------------------------------


def neutral_prompts() -> list[str]:
    """The neutral requests that ship with the package."""
    return _lines("neutral_prompts.txt")


def _lines(name: str) -> list[str]:
    return resources.files("personae.data").joinpath(name).read_text(encoding="utf-8").splitlines()


def _sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    targets: Sequence[Target],
    plain_items: int,
    chat_items: int,
    seed: int,
    tick: Callable[[int], None] | None,
) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...]]:
    openings = [tuple(tokenizer(o)["input_ids"]) for o in _cycled(_lines("plain_openings.txt"), plain_items)]
    prompts = [tuple(encode_prompt(tokenizer, p)) for p in _cycled(neutral_prompts(), chat_items)]
    # the prompts as token ids: another tokenizer, template or list of prompts makes another text
    beside = surroundings(model, targets)
    ends = [end_of_turn(tokenizer), tokenizer.eos_token_id]
    recipe = json.dumps(
        [fingerprint(targets), beside, str(model.dtype), openings, prompts, ends, seed, WINDOW, ANSWER_TOKENS, 4]
    )
    path = cache_directory() / "generic" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:24]}.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            plain, chat = ([Encoded(tuple(p), tuple(a)) for p, a in stored[k]] for k in ("plain", "chat"))
            return tuple(plain), tuple(chat)
        except (ValueError, KeyError, TypeError):
            pass  # a damaged cache file is made anew
    plain = sample(model, tokenizer, openings, length=WINDOW // 2, seed=seed, ends=False, tick=tick)
    plain = [Encoded((), e.prompt + e.answer) for e in plain]
    chat = sample(model, tokenizer, prompts, length=ANSWER_TOKENS, seed=seed + 1, ends=True, tick=tick)
    _keep(path, {"plain": _plain_lists(plain), "chat": _plain_lists(chat)})
    return tuple(plain), tuple(chat)


def _cycled(lines: list[str], number: int) -> list[str]:
    return (lines * (number // len(lines) + 1))[:number]


def _plain_lists(items: Sequence[Encoded]) -> list[list[list[int]]]:
    return [[list(e.prompt), list(e.answer)] for e in items]


def _keep(path: Path, body: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(body), encoding="utf-8")


@torch.no_grad()
def generate(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """transformers' own generation from left-padded prompts, (B, T) -> (B, T + new) on the CPU.

    The habits that a checkpoint ships (repetition penalty, top-k, forced tokens) stay out of it, so what
    comes is the model's own distribution; its `generation_config` is put back.
    """
    run: Any = model.generate
    habits = model.generation_config
    try:
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        tokens: torch.Tensor = run(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), pad_token_id=0, **options
        )
    finally:
        model.generation_config = habits
    return tokens.cpu()


class _Draw(LogitsProcessor):
    """Draws each row's next token from softmax(scores) by the inverse of its distribution function, and leaves only it.

    One uniform number a row from a generator of its own, on the CPU. `torch.multinomial` takes one a token of the
    vocabulary, which on a CPU costs a fifth of a decoding step.
    """

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, (B, vocabulary), with -inf everywhere but at the drawn tokens."""
        below = scores.float().softmax(-1).cumsum(-1)
        level = torch.rand(len(scores), 1, generator=self._random).to(scores.device) * below[:, -1:]
        # right: the first token whose sum lies above the level, so one of probability 0 is never drawn
        token = torch.searchsorted(below, level, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    length: int,
    seed: int,
    ends: bool,
    batch: int = 64,
    tick: Callable[[int], None] | None = None,
) -> list[Encoded]:
    """Continuations at temperature 1 (no truncation of the distribution), `length` tokens at most.

    ends=True stops at the end of the turn and keeps its token. The global random state is neither used nor changed.
    """
    closing = end_of_turn(tokenizer) if ends else ""
    stop = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    stop_ids = [stop[0]] if len(stop) == 1 else []
    result: list[Encoded] = []
    drawn = LogitsProcessorList([_Draw(seed)])
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        width = max(len(p) for p in part)
        ids = torch.zeros(len(part), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        # Without a stop token the end of text is held back: what follows it would be another text.
        held_back = {} if stop_ids else {"min_new_tokens": length}
        out = generate(
            model, ids, mask, do_sample=False, logits_processor=drawn, max_new_tokens=length,
            eos_token_id=stop_ids or tokenizer.eos_token_id, **held_back,
        )[:, width:].tolist()  # fmt: skip
        for prompt, row_ids in zip(part, out, strict=True):
            end = next((i + 1 for i, t in enumerate(row_ids) if t in stop_ids), len(row_ids))
            result.append(Encoded(prompt, tuple(row_ids[:end])))
        if tick:
            tick(len(part))
    return result
