"""A model under a persona as a model of Inspect (UK AISI), by the name 'personae'.

Inspect loads this module through the entry point group `inspect_ai`; from then on its own tasks, options and logs
work as they do for any model. Text is written by `PersonaModel.chat`, so an answer in a log is the answer of a chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from personae.errors import DataError, OptionError
from personae.evaluation.lm_eval_model import worn
from personae.models import load_model
from personae.runtime.generation import prompt_tokens

__all__ = ["PersonaAPI", "chat_options", "text_messages"]

MAX_TOKENS = 200  # as `PersonaModel.chat`; an evaluation can ask for another number
# What `chat` cannot do: an answer written without an option asked for would be scored as if it had been heeded.
UNSUPPORTED = (
    "best_of", "frequency_penalty", "logit_bias", "logprobs", "presence_penalty", "prompt_logprobs", "response_schema",
    "top_k", "top_logprobs",
)  # fmt: skip


@modelapi(name="personae")
class PersonaAPI(ModelAPI):
    """`--model personae/default -M persona=FILE.persona -M name=POLE [-M strength=0.7] [-M dtype=…] [-M device=…]`.

    model_name: 'default', a Hub id, a folder or a `.gguf` file. persona, name: a `.persona` file and the persona of
    it to wear; without both, the base model. strength: 0 to 1, or above. dtype, device: as `load_model`.
    allow_other_weights: as `PersonaModel.add_personas`.

    Errors: `OptionError` for arguments that are unknown or do not go together; `UnknownPersonaError`; those of
    `load_model` and `PersonaModel`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature; never changed here
        persona: str | None = None,
        name: str | None = None,
        strength: float = 1.0,
        dtype: str = "auto",
        device: str = "auto",
        allow_other_weights: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        if unknown:
            raise OptionError(
                f"unknown model arguments {', '.join(sorted(unknown))}: personae takes persona, name, strength, dtype, "
                "device and allow_other_weights."
            )
        if (persona is None) != (name is None):  # `worn` calls them by other names
            raise OptionError("-M persona=FILE and -M name=POLE belong together: give both, or neither.")
        model, self._tokenizer = load_model(model_name, dtype=dtype, device=device)
        self._actor = worn(model, self._tokenizer, persona, name, float(strength), allow_other_weights)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One answer. Output tokens are those of the answer's text, encoded anew; the stop reason is 'unknown'.

        Errors: `OptionError` for tools and for options that `chat` has not; `DataError` for messages that are no text.
        """
        if tools:
            raise OptionError("a model under a persona calls no tools: use a task without tools.")
        messages, options = text_messages(input), chat_options(config)
        # In a thread: Inspect's event loop goes on while the model writes; `chat` itself lets one thread in at a time.
        text = await anyio.to_thread.run_sync(lambda: self._actor.chat(messages, **options))
        read = len(prompt_tokens(self._tokenizer, messages))
        written = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        answer = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=answer, stop_reason="unknown")],
            usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
        )

    def max_tokens(self) -> int | None:
        """Longest answer unless the evaluation says otherwise."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """One: there is one resident model."""
        return 1

    def connection_key(self) -> str:
        """Every resident model has its own queue."""
        return f"{self.model_name}-{id(self)}"

    def collapse_user_messages(self) -> bool:
        """Chat templates want user and assistant to take turns."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """As for the user's."""
        return True

    def collapse_system_messages(self) -> bool:
        """`chat` takes one system prompt, at the start."""
        return True


def text_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Inspect's messages as `chat` takes them, {'role', 'content'}.

    Errors: `DataError` for a picture, sound or anything else that is not text.
    """
    plain = []
    for number, message in enumerate(messages):
        parts = [] if isinstance(message.content, str) else message.content
        foreign = sorted({part.type for part in parts if not isinstance(part, ContentText)})
        if foreign:
            raise DataError(f"message {number} holds {', '.join(foreign)}: personae reads text alone.")
        plain.append({"role": str(message.role), "content": message.text})
    return plain


def chat_options(config: GenerateConfig) -> dict[str, Any]:
    """Inspect's options as arguments of `chat`; temperature 0 (the likeliest token) unless one is given.

    Errors: `OptionError` for an option that `chat` has not.
    """
    asked = [option for option in UNSUPPORTED if getattr(config, option) not in (None, False)]
    asked += ["num_choices"] if config.num_choices not in (None, 1) else []
    if asked:
        raise OptionError(
            f"{', '.join(asked)}: not supported by personae; it takes max_tokens, temperature, top_p, seed, stop_seqs."
        )
    return {
        "max_new_tokens": MAX_TOKENS if config.max_tokens is None else config.max_tokens,
        "temperature": 0.0 if config.temperature is None else config.temperature,
        "top_p": 1.0 if config.top_p is None else config.top_p,
        "seed": config.seed,
        "stop": config.stop_seqs,
    }
