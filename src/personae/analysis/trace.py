"""Which persona is speaking? A text under the base model and under every persona of an artefact, token by token.

The base model reads the text once, with hooks that see how much of every layer's output comes through the weights that
one persona alone drops (`trace_flow`); then each persona's masks are worn in place for one more forward. What that says
of a token, and who speaks, is arithmetic (`trace_verdict`).

    tracer = Tracer(model, tokenizer, load("power-seeking.persona"))
    found = tracer.trace("I would take the post.", question="Would you lead the council?")
    found.verdict.sentence, found.relative, found.share
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.trace_flow import Flow, Squares, exclusive
from personae.analysis.trace_result import Trace
from personae.analysis.trace_verdict import even, gains, relative, verdict
from personae.discovery import Progress, encode_contrast, silent
from personae.errors import DataError, ModelError, OptionError
from personae.models import (
    Encoded,
    Question,
    context_length,
    encode,
    end_of_turn,
    find_targets,
    make_batch,
    score_continuations,
    score_sequences,
)
from personae.personas import Contrast
from personae.runtime import Options, PersonaModel, check_base
from personae.subnetwork import Artefact, load

__all__ = ["Tracer", "pieces", "trace"]

Floats = NDArray[np.float64]
_LONGEST = 4  # tokens of one character, which has at most four bytes

Reading = tuple[Floats, Floats]  # log p of an answer's tokens under base, (T,), and under each persona, (P, T)


class Tracer:
    """Traces texts under the personas of one artefact; what these need is made once.

    personas: only these of the artefact, in its order; None: all. flow: whether to read the layers. The base weights
    must not change meanwhile; between two calls the model is the base model, bit for bit. Calls of several threads wait
    for each other.

    Errors: those of `PersonaModel.add_personas`; `PersonaInUseError` while a persona is worn on the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artefact: Artefact | str | PathLike[str],
        *,
        personas: Sequence[str] | None = None,
        flow: bool = True,
        allow_other_weights: bool = False,
    ) -> None:
        check_base(model, "trace")
        self.model, self.tokenizer = model, tokenizer
        made = artefact if isinstance(artefact, Artefact) else load(artefact)
        targets = find_targets(model)
        self._actor = PersonaModel(model, tokenizer, targets=targets)
        self._actor.add_personas(made, names=personas, allow_other_weights=allow_other_weights)
        # In the file's order, however they were asked for: of equal scores the first is ahead.
        self.personas = tuple(name for name in made.names if name in self._actor.personas)
        if not self.personas:
            raise OptionError("no persona was chosen: name at least one, or leave `personas` out.")
        self._flow = None
        if flow:
            self._flow = Flow(model, targets, exclusive([made[name].masks for name in self.personas]))
        self._lock = threading.RLock()

    # ------------------------------------------------------------------ texts

    @torch.no_grad()
    def trace(
        self,
        text: str,
        *,
        question: str | None = None,
        system: str | None = None,
        closed: bool = True,
        offsets: Sequence[float] | None = None,
    ) -> Trace:
        """Trace one text.

        question, system: what it answers, in the model's chat template; without a question the text is read as plain
        text, and its first token, which nothing predicts, is left out. closed: whether the answer ends with the end of
        its turn, which is then traced too. offsets: of `calibrate`.

        Errors: `DataError` for a text without tokens, or longer than the model's context; `OptionError` for a system
        prompt without a question; `ModelError` where a log-probability is no finite number.
        """
        encoded = self._encoded(text, question, system, closed)
        ids = encoded.prompt + encoded.answer
        batch = make_batch([ids], [len(encoded.prompt)], [0]).to(self.model.device)
        rows = torch.roll(batch.counted, -1, dims=1)  # the position before a token predicts it
        rows[:, -1] = False  # that rolled round from a first token, which has none
        with self._lock:
            check_base(self.model, "trace")
            with contextlib.ExitStack() as hooks:
                read = hooks.enter_context(self._flow.reading(rows)) if self._flow is not None else []
                base = score_sequences(self.model, batch)
            squares: Squares | None = next(iter(read), None)
            worn = []
            for name in self.personas:
                with self._actor.persona(name):
                    worn.append(score_sequences(self.model, batch))
        scored = _finite(base.cpu().double().numpy(), torch.stack(worn).cpu().double().numpy(), self.model)
        unscored = len(encoded.answer) - len(scored[0])
        texts = pieces(self.tokenizer, encoded.answer)
        share = relative(gains(*scored))
        return Trace(
            question, "".join(texts[:unscored]), texts[unscored:], encoded.answer[unscored:], self.personas, *scored,
            verdict(self.personas, share, offsets), () if self._flow is None else tuple(self._flow.layers), squares,
            self._notes(),
        )  # fmt: skip

    def answer(
        self,
        question: str,
        *,
        persona: str | None = None,
        system: str | None = None,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> tuple[str, bool]:
        """A live answer of a persona, or of the base model, and whether it came to its end (`closed` of `trace`).

        Errors: as `PersonaModel.chat`; `UnknownPersonaError`; `DataError` for an answer without a word.
        """
        with self._lock, self._actor.persona(persona) if persona is not None else contextlib.nullcontext():
            options = Options(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            said, ended = self._actor.reply(question, options, system=system)
        if not said:
            raise DataError("the model answered without a word, so there is nothing to trace: ask something else.")
        return said, ended

    # --------------------------------------------------------------- many answers

    def read(self, questions: Sequence[Question], *, progress: Progress = silent) -> list[list[Reading]]:
        """Log-probabilities of every answer to every question, without the layers. Errors: `ModelError` as `trace`."""
        with self._lock:
            check_base(self.model, "trace")
            under = []
            for name in (None, *self.personas):
                worn = self._actor.persona(name) if name is not None else contextlib.nullcontext()
                with worn, progress(f"reading answers as {name or 'base'}", len(questions)) as tick:
                    under.append(score_continuations(self.model, questions, tick=tick))
        return [
            [
                _finite(each[0].double().numpy(), torch.stack(each[1:]).double().numpy(), self.model)
                for each in zip(*answers, strict=True)
            ]
            for answers in zip(*under, strict=True)
        ]

    def calibrate(self, contrast: Contrast, *, progress: Progress = silent) -> tuple[float, ...]:
        """Offsets at which answers of both poles are even, from labelled answers that `trace` is not to be judged on.

        Errors: `OptionError` unless the personas are the contrast's two poles; `DataError` where it is not paired.
        """
        if set(self.personas) != set(contrast.poles):
            raise OptionError(
                f"the personas here are {', '.join(self.personas)}, but the poles of '{contrast.name}' are "
                f"{' and '.join(contrast.poles)}: calibrate two personas on their own contrast."
            )
        if not contrast.paired:
            raise DataError(f"contrast '{contrast.name}' is not paired: give both poles' answers to each question.")
        questions = encode_contrast(self.model, self.tokenizer, contrast).paired
        readings = self.read(questions, progress=progress)
        return even([relative(gains(*reading)) for answers in readings for reading in answers])

    # --------------------------------------------------------------------- inside

    def _encoded(self, text: str, question: str | None, system: str | None, closed: bool) -> Encoded:
        context = context_length(self.model)
        if not self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise DataError("a text without tokens cannot be traced: give some text.")
        if question is not None:
            encoded = encode(self.tokenizer, question, text, system=system, context=context)
            end = tuple(self.tokenizer(end_of_turn(self.tokenizer), add_special_tokens=False)["input_ids"])
            if not closed and end and encoded.answer[-len(end) :] == end:
                encoded = Encoded(encoded.prompt, encoded.answer[: -len(end)])
            return encoded
        if system is not None:
            raise OptionError("a system prompt stands before a question: give the question that the text answers.")
        ids = tuple(self.tokenizer(text)["input_ids"])
        if len(ids) < 2:
            raise DataError("a plain text of one token has nothing that predicts it: give more text, or its question.")
        if context is not None and len(ids) > context:
            raise DataError(f"a text of {len(ids)} tokens does not fit the model's context of {context}: trace a part.")
        return Encoded((), ids)

    def _notes(self) -> tuple[str, ...]:
        if self._flow is None or not self._flow.unread:
            return ()
        return (
            f"{self._flow.unread:,} weights that one persona alone drops lie in experts, which see only the tokens "
            "routed to them: the shares are without these.",
        )


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    artefact: Artefact | str | PathLike[str],
    text: str,
    *,
    question: str | None = None,
    **options: Any,
) -> Trace:
    """One text; options of `Tracer` and of `Tracer.trace`. For more than one text keep a `Tracer`."""
    own = {key: options.pop(key) for key in ("personas", "flow", "allow_other_weights") if key in options}
    return Tracer(model, tokenizer, artefact, **own).trace(text, question=question, **options)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of every token; joined, they are the decoded text.

    A token is decoded behind the one before it, since byte-level and sentencepiece tokens have no text of their own. A
    character of several tokens stands at its last one, and the others have none.
    """
    texts: list[str] = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        before, now = _decoded(tokenizer, ids[start:read]), _decoded(tokenizer, ids[start:end])
        if now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) and end - read < _LONGEST:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, read = read, end
    return tuple(texts)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _finite(base: Floats, worn: Floats, model: PreTrainedModel) -> Reading:
    if not (np.isfinite(base).all() and np.isfinite(worn).all()):
        raise ModelError(
            f"some log-probabilities are no finite numbers: the arithmetic overflows in "
            f"{str(model.dtype).removeprefix('torch.')}; load the model in float32."
        )
    return base, worn
