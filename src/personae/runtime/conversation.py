"""A conversation that remembers what was said, whoever says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from personae.runtime.generation import TextStream
from personae.runtime.persona_model import PersonaModel

__all__ = ["Conversation"]


class Conversation:
    """Questions and answers with a `PersonaModel`, one after the other.

    The persona may change between two questions. No keys and values are kept from turn to turn: the whole
    history is read again by the persona that answers, so an answer depends on the words alone and never
    on who was worn when they were read first.

    actor: the model. system: a system prompt for the whole conversation.
    """

    def __init__(self, actor: PersonaModel, system: str | None = None) -> None:
        self.actor = actor
        self.system = system
        self._messages: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said so far, without the system prompt; a copy."""
        return [dict(message) for message in self._messages]

    def ask(
        self,
        text: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> str:
        """The answer to the next message; options of `PersonaModel.chat`. An error changes no history."""
        answer = self.actor.chat(
            [*self._messages, _said("user", text)], system=self.system, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p, seed=seed, stop=stop,
        )  # fmt: skip
        self._messages += [_said("user", text), _said("assistant", answer)]
        return answer

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]:
        """The answer piece by piece, started at once; what was read is remembered, even if closed early."""
        stream = self.actor.stream_chat(
            [*self._messages, _said("user", text)], system=self.system, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p, seed=seed, stop=stop,
        )  # fmt: skip
        return self._remembered(text, stream)

    def _remembered(self, text: str, stream: TextStream) -> Iterator[str]:
        pieces: list[str] = []
        with stream:
            try:
                for piece in stream:
                    pieces.append(piece)
                    yield piece
            except (GeneratorExit, KeyboardInterrupt):  # the reader has had enough: what it read was said
                if pieces:
                    self._remember(text, pieces)
                raise
        self._remember(text, pieces)

    def _remember(self, text: str, pieces: list[str]) -> None:
        self._messages += [_said("user", text), _said("assistant", "".join(pieces).strip())]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
