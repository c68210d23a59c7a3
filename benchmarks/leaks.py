"""Does a persona leak into an answer that is written beside it? Mixed requests together against each one alone.

    python -m benchmarks.leaks                  # 10,000 on a tiny random model, 500 on the default model
    python -m benchmarks.leaks --tiny 300 --default 0

Requests under the base model, eight personas, strengths and blends of them, greedy and drawn with a seed, with stop
strings and log-probabilities, from prompts that begin alike under different looks, some cancelled, are put to one
engine in random order. Each answer is then written again alone: one request, `generate`'s own cache, the persona worn
in place. serve.leaks counts answers that differ although every choice in them was clear: the token taken led by more
than TOLERANCE (logits if greedy, log of probability over noise if drawn), so float rounding cannot explain it.
unclear: answers with a closer choice, which are not judged; base_differs: answers that the base model would have
written differently, without which nothing could be seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

from personae.errors import BusyError
from personae.models import find_targets
from personae.runtime import PersonaModel
from personae.runtime.answer import Ending
from personae.runtime.decoding import Reader, Sampler
from personae.runtime.engine import Engine, Ticket
from personae.runtime.generation import Options
from personae.runtime.look import BASE, Look, look_of
from personae.runtime.requests import End, Piece, Request
from personae.subnetwork import Mask, Provenance, Subnetwork

SEED = 11
TOLERANCE = 1e-3
NAMES = tuple("abcdefgh")
SHARES = {"tiny": (0.05, 0.4), "default": (0.005, 0.4)}  # of weights dropped: six sparse personas, two dense ones
WORDS = (
    "Would", "you", "rather", "stay", "at", "home", "or", "go", "out", "tonight", "and", "why", "do", "most", "people",
    "think", "that", "is", "what", "they", "like", "?",
)  # fmt: skip


# ---------------------------------------------------------------- requests


def mixed_requests(
    tokenizer: PreTrainedTokenizerBase, number: int, seed: int, names: Sequence[str] = NAMES, longest: int = 24
) -> list[Request]:
    """Random requests; many prompts and beginnings of prompts come back under other looks."""
    chance = random.Random(seed)
    beginnings = [" ".join(chance.choices(WORDS, k=chance.randint(4, 24))) for _ in range(6)]
    prompts: list[tuple[int, ...]] = []
    requests = []
    for _ in range(number):
        if prompts and chance.random() < 0.3:
            tokens = chance.choice(prompts)
        else:
            text = f"{chance.choice(beginnings)} {' '.join(chance.choices(WORDS, k=chance.randint(1, 8)))}"
            tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            prompts.append(tokens)
        drawn = chance.random() < 0.4
        options = Options(
            max_new_tokens=chance.randint(1, longest),
            temperature=chance.choice([0.7, 1.0, 1.3]) if drawn else 0.0,
            top_p=chance.choice([1.0, 0.8]) if drawn else 1.0,
            seed=chance.randrange(2**31) if drawn else None,
            stop=tuple(chance.sample("aeiou ", chance.choice([0, 0, 1, 2]))),
        )
        requests.append(Request(tokens, _look(chance, names), options, chance.choice([None, None, 0, 3])))
    return requests


def _look(chance: random.Random, names: Sequence[str]) -> Look:
    kind = chance.random()
    if kind < 0.15:
        return BASE
    if kind < 0.65:
        return look_of(chance.choice(names))
    if kind < 0.8:
        return look_of(chance.choice(names), chance.choice([0.5, 0.9, 1.3]))
    return look_of({name: chance.choice([0.3, 0.6, 1.0]) for name in chance.sample(list(names), 2)})


# ---------------------------------------------------------------- alone


@dataclass(frozen=True)
class Solo:
    """An answer written alone. margin: by how much its closest choice was taken."""

    text: str
    tokens: tuple[int, ...]
    reason: str
    margin: float


@torch.no_grad()
def solo(actor: PersonaModel, request: Request) -> Solo:
    """The oracle: one request, its look worn in place, token after token with a cache as `generate` makes it."""
    model, tokenizer, options = actor.model, actor.tokenizer, request.options
    assert tokenizer is not None
    ending = Ending(model, tokenizer)
    pieces: list[str] = []
    reader = Reader(tokenizer, [*options.stop, *ending.stops], pieces.append)
    reader.put(torch.tensor(request.tokens))
    sampler = Sampler(options.temperature, options.top_p, options.seed) if options.temperature else None
    twin = torch.Generator().manual_seed(options.seed or 0)
    penalty = RepetitionPenaltyLogitsProcessor(ending.penalty)
    cache, known, margin, reason = DynamicCache(config=model.config), list(request.tokens), float("inf"), "length"
    with actor.persona(dict(request.look)) if request.look else contextlib.nullcontext():
        while len(known) < len(request.tokens) + options.max_new_tokens:
            ids = torch.tensor([known[cache.get_seq_length() :]], device=model.device)
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].float().cpu()
            scores = penalty(torch.tensor([known]), logits)
            if sampler is None:
                best = scores[0].topk(2)
                token, lead = int(best.indices[0]), float(best.values[0] - best.values[1])
            else:
                token = int(sampler(torch.tensor([known]), scores).argmax())
                lead = _lead(scores[0], token, options, twin)
            margin = min(margin, lead)
            known.append(token)
            reader.put(torch.tensor([token]))
            if reader.stopped or token in ending.tokens:
                reason = "stop"
                break
    reader.end()
    return Solo("".join(pieces), tuple(known[len(request.tokens) :]), reason, margin)


def _lead(scores: torch.Tensor, token: int, options: Options, twin: torch.Generator) -> float:
    """By how much a draw was won: `multinomial` takes the largest probability over exponential noise.

    0 where a token at the very edge of the nucleus won or would have won.
    """
    logits = scores.double()
    probabilities = ((logits - logits.max()) / options.temperature).softmax(0)
    noise = torch.empty_like(probabilities).exponential_(1, generator=twin)
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    raced = (ordered / noise[tokens]).log()
    race = raced[before < options.top_p + TOLERANCE].sort(descending=True)
    inside = before < options.top_p - TOLERANCE
    inside[0] = True
    best = int(race.indices[0])
    if int(tokens[best]) != token or not inside[best]:
        return 0.0
    return float(race.values[0] - race.values[1]) if len(race.values) > 1 else float("inf")


# ---------------------------------------------------------------- together


@dataclass
class Heard:
    """What the listener of one request heard."""

    pieces: list[Piece] = field(default_factory=list)
    last: End | BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket | None = None
    cancel_after: int | None = None  # pieces

    def __call__(self, word: Piece | End | BaseException) -> None:
        """The listener."""
        if isinstance(word, Piece):
            self.pieces.append(word)
            if self.cancel_after is not None and len(self.pieces) >= self.cancel_after and self.ticket:
                self.ticket.cancel()
        else:
            self.last = word
            self.over.set()

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


def ask_all(engine: Engine, requests: Sequence[Request], seed: int, cancelled: float = 0.03) -> list[Heard]:
    """Put all requests to the engine in random order, as fast as it takes them; some are cancelled on the way."""
    chance = random.Random(seed)
    heard = [Heard(cancel_after=chance.randint(0, 6) if chance.random() < cancelled else None) for _ in requests]
    for number in chance.sample(range(len(requests)), len(requests)):
        while heard[number].ticket is None:
            try:
                heard[number].ticket = engine.submit(requests[number], heard[number])
            except BusyError:
                time.sleep(0.001)
        if heard[number].cancel_after == 0:
            heard[number].ticket.cancel()
    for each in heard:
        each.over.wait()
    return heard


def differs(heard: Heard, alone: Solo) -> bool:
    """Whether an answer is not the one written alone; of a cancelled one only what was heard is compared."""
    if not isinstance(heard.last, End):
        return True
    scored = tuple(score.token for piece in heard.pieces for score in piece.scores)
    if heard.last.reason == "cancelled":
        return not alone.text.startswith(heard.text) or scored != alone.tokens[: len(scored)]
    return (
        (heard.text, heard.last.reason, heard.last.completion_tokens) != (alone.text, alone.reason, len(alone.tokens))
        or scored != alone.tokens[: len(scored)]
    )  # fmt: skip


def compare(actor: PersonaModel, requests: Sequence[Request], seed: int, **limits: int) -> dict[str, Any]:
    """Leaks, unclear answers and what the engine counted."""
    started = time.perf_counter()
    with Engine(actor, **limits) as engine:
        heard = ask_all(engine, requests, seed)
        stats = engine.stats()
    together = time.perf_counter() - started
    found: dict[str, Any] = {"requests": len(requests)}
    found |= dict.fromkeys(("leaks", "unclear", "unclear_differ", "base_differs"), 0)
    memory: dict[Request, Solo] = {}

    def alone(request: Request) -> Solo:
        key = replace(request, logprobs=None)
        if key not in memory:
            memory[key] = solo(actor, key)
        return memory[key]

    for request, each in zip(requests, heard, strict=True):
        answer = alone(request)
        clear = answer.margin > TOLERANCE
        wrong = differs(each, answer)
        found["leaks"] += wrong and clear
        found["unclear"] += not clear
        found["unclear_differ"] += wrong and not clear
        found["base_differs"] += bool(request.look) and alone(replace(request, look=BASE)).text != answer.text
    counted = {name: getattr(stats, name) for name in type(stats).__dataclass_fields__ if name != "outcomes"}
    return {
        **found, "outcomes": dict(stats.outcomes), "engine": counted,
        "seconds": {"together": together, "alone": time.perf_counter() - started - together},
    }  # fmt: skip


# ---------------------------------------------------------------- models


def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random Llama over bytes, with grouped heads; weights wide enough that attention is far from flat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(["<end>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    random_bits = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25, generator=random_bits)
    return model, tokenizer


def dressed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shares: tuple[float, float]) -> PersonaModel:
    """An actor with eight random personas, the last two of them dense."""
    actor = PersonaModel(model, tokenizer)
    for number, name in enumerate(NAMES):
        share = shares[number >= len(NAMES) - 2]
        chance = np.random.default_rng([SEED, number])
        masks = {t.name: Mask.from_dropped(chance.random(t.shape) < share) for t in find_targets(model)}
        actor.add_personas(Subnetwork(name, masks, Provenance(method="random", sparsity=share)))
    return actor


def main() -> None:
    """Both models, then the result file."""
    from benchmarks.common import machine, write
    from personae import load_model

    parser = argparse.ArgumentParser(description="Answers written together against answers written alone.")
    parser.add_argument("--tiny", type=int, default=10_000, help="requests to the tiny model")
    parser.add_argument("--default", type=int, default=500, help="requests to the default model")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"command": f"python -m benchmarks.leaks --tiny {chosen.tiny} --default {chosen.default}"}
    for name, number in (("tiny", chosen.tiny), ("default", chosen.default)):
        if number:
            model, tokenizer = tiny() if name == "tiny" else load_model(dtype="float32")
            actor = dressed(model, tokenizer, SHARES[name])
            result[name] = compare(actor, mixed_requests(tokenizer, number, SEED), SEED)
            print(name, json.dumps(result[name], indent=1), flush=True)
    parts = [result[name] for name in ("tiny", "default") if name in result]
    result |= {
        "serve.leaks": sum(part["leaks"] for part in parts),
        "serve.leaks_requests": sum(part["requests"] for part in parts),
        "seed": SEED, "tolerance": TOLERANCE, "machine": machine(),
    }  # fmt: skip
    write("leaks", result)


if __name__ == "__main__":
    main()
