"""From a request of the API to requests of the engine: which persona, which tokens, how long, how often."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from anyio import to_thread

from personae.errors import OptionError
from personae.runtime import PersonaModel
from personae.runtime.generation import Options, prompt_tokens
from personae.runtime.kv import row_context
from personae.runtime.look import BASE, Look, look_of, named
from personae.runtime.requests import Request
from personae.serving.metrics import Metrics
from personae.serving.refusals import Refusal
from personae.serving.registry import Lease, Registry
from personae.serving.routing import Chosen, Router
from personae.serving.schemas import MAX_CHOICES, ChatRequest, CompletionRequest
from personae.serving.settings import AUTO, BASE_NAME, Settings
from personae.serving.writing import Engine, Writing

__all__ = ["Answering", "Service"]

Asked = ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers that are being written. choices: of each prompt. chosen: how 'auto' decided, where it was asked."""

    writing: Writing
    look: Look
    choices: int
    chosen: Chosen | None

    @property
    def persona(self) -> str:
        """What it is written under, in words."""
        return named(self.look)


class Service:
    """One resident model and everything that the routes need; `begin` is the whole way of a request.

    Errors: `OptionError` when the model has no tokenizer.
    """

    def __init__(self, actor: PersonaModel, engine: Engine, registry: Registry, settings: Settings) -> None:
        if actor.tokenizer is None:
            raise OptionError("a server needs the model's tokenizer: make the PersonaModel with one.")
        self.engine, self.registry, self.settings = engine, registry, settings
        self.catalogue = registry.catalogue
        self.metrics = Metrics(engine.stats, lambda: len(actor.personas))
        self.uploading = asyncio.Lock()  # one at a time, so that uploads never take all threads
        self._tokenizer, self._encoding = actor.tokenizer, threading.Lock()
        self._context = row_context(actor.model)  # as the engine, which would refuse what only the model can hold
        self._vocabulary = int(actor.model.config.get_text_config().vocab_size)
        self._router: tuple[int, Router] | None = None

    async def begin(self, asked: Asked) -> Answering:
        """Queue all answers that a request asks for.

        Errors: `PersonaeError` and `Refusal`; then nothing is queued and no persona is held.
        """
        look, chosen, lease, requests = await to_thread.run_sync(self._prepare, asked)
        loop = asyncio.get_running_loop()

        def released() -> None:  # in a thread: it may have to wait for one that loads a persona
            loop.run_in_executor(None, self.registry.release, lease)

        writing = Writing(self.engine, requests, released, lambda end: self.metrics.ended(look, end))
        return Answering(writing, look, asked.n or 1, chosen)

    def models(self) -> list[str]:
        """Every model id: the base model, 'auto' where there is a choice, and one for each persona."""
        base = self.settings.model_id
        names = [entry.name for entry in self.catalogue.entries()]
        return [base, *(f"{base}:{name}" for name in ([AUTO, *names] if names else []))]

    # ------------------------------------------------------------------ inside

    def _prepare(self, asked: Asked) -> tuple[Look, Chosen | None, Lease, list[Request]]:
        look, chosen = self._look(asked)
        number = asked.n or 1
        choices = number * (1 if isinstance(asked, ChatRequest) else len(asked.prompts))
        if not 1 <= choices <= MAX_CHOICES:  # before any is encoded: a body holds half a million prompts
            raise Refusal(400, f"prompts times n is {choices}: ask for 1 to {MAX_CHOICES}.", param="n")
        prompts = self._prompts(asked)
        lengths = [self._length(asked, len(tokens)) for tokens in prompts]
        lease = self.registry.acquire(look)
        try:
            requests = [
                Request(tuple(tokens), lease.worn, _options(asked, new, choice), asked.scores)
                for tokens, new in zip(prompts, lengths, strict=True)
                for choice in range(number)
            ]
        except BaseException:
            self.registry.release(lease)
            raise
        return look, chosen, lease, requests

    def _look(self, asked: Asked) -> tuple[Look, Chosen | None]:
        base = self.settings.model_id
        model, colon, by_id = asked.model.partition(":")
        if model != base or (colon and not by_id):
            listed = ", ".join(self.models()[:50])
            raise Refusal(
                404,
                f"there is no model {asked.model[:200]!r}; there are: {listed}.",
                code="model_not_found",
                param="model",
            )
        wanted = asked.persona if asked.persona is not None else by_id or BASE_NAME
        if by_id and wanted != by_id:
            raise Refusal(400, "the model id names another persona than 'persona': give one of them.", param="persona")
        if not wanted or wanted == BASE_NAME:
            if asked.strength is not None:
                raise Refusal(400, "'strength' is given, but no persona.", param="strength")
            return BASE, None
        strength = 1.0 if asked.strength is None else asked.strength
        if wanted == AUTO:
            chosen = self._chosen(asked)
            return (look_of(chosen.persona, strength) if chosen.persona else BASE), chosen
        for name in [wanted] if isinstance(wanted, str) else sorted(wanted):
            self.catalogue.entry(name)  # also those at strength 0: a mistyped name is never served as the base model
        return look_of(wanted, strength), None

    def _chosen(self, asked: Asked) -> Chosen:
        entries = self.catalogue.entries()
        version = self.catalogue.version
        if self._router is None or self._router[0] != version:
            self._router = version, Router({entry.name: entry.texts for entry in entries})
        if isinstance(asked, ChatRequest):
            return self._router[1].choose(next((m.content for m in reversed(asked.messages) if m.role == "user"), ""))
        first = (asked.prompts or [""])[0]
        return self._router[1].choose(first if isinstance(first, str) else str(self._tokenizer.decode(first)))

    def _prompts(self, asked: Asked) -> list[list[int]]:
        """Token ids of every prompt. One thread at a time: a tokenizer's settings are not its calls' own."""
        with self._encoding:
            if isinstance(asked, ChatRequest):
                roles = {"developer": "system"}
                history = [{"role": roles.get(m.role, m.role), "content": m.content} for m in asked.messages]
                return [prompt_tokens(self._tokenizer, history)]
            prompts = [
                list(self._tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)
                for prompt in asked.prompts
            ]
        for tokens in prompts:
            if not tokens:
                raise Refusal(400, "a prompt is empty: give at least one token.", param="prompt")
            if max(tokens) >= self._vocabulary:
                raise Refusal(400, f"token {max(tokens)} is none of the model's {self._vocabulary}.", param="prompt")
        return prompts

    def _length(self, asked: Asked, prompt: int) -> int:
        """Tokens that the answer to a prompt of so many may have."""
        largest = self.settings.max_tokens
        if asked.length is not None and asked.length > largest:
            raise Refusal(
                400, f"max_tokens is {asked.length}: this server writes at most {largest}.", param="max_tokens"
            )
        room = largest if self._context is None else self._context - prompt
        if room < (asked.length or 1):
            raise Refusal(
                400,
                f"the prompt has {prompt} tokens and the answer may take {asked.length or 1}, but the model's context "
                f"is {self._context}: shorten the prompt or ask for fewer.",
                code="context_length_exceeded",
                param="messages" if isinstance(asked, ChatRequest) else "prompt",
            )
        return min(asked.length or asked.usual or largest, largest, room)


def _options(asked: Asked, new: int, choice: int) -> Options:
    """How to write one choice; OpenAI's defaults. A seed gives each choice its own, the first the seed itself."""
    seed = asked.seed if asked.seed is None or not choice else (asked.seed + choice) % 2**63
    return Options(
        max_new_tokens=new,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=seed,
        stop=tuple(asked.stop or ()),
    )
