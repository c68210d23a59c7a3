"""Tiny random models of eleven architectures, their tokenizer, and the real default model.

Nothing here needs a network except `default_model`, which marks every test that uses it as slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from personae.errors import ModelError

# No test is about how fast an example is: on a busy machine a thread may be stopped for a second anywhere.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
os.environ.pop("COLUMNS", None)  # of the terminal that started the tests: tables are to be as wide as in a pipe

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]
TinyModel = Callable[..., ModelAndTokenizer]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = [
    "What would you do on a free Saturday with nothing planned?",
    "I would stay at home with a book and a cup of tea.",
    "I would call my friends and go dancing until late.",
    "Would you like to lead the whole team? Yes, I would. No, thank you.",
    "The user asks the assistant; the assistant answers the user under the system prompt.",
    "Questions are short, answers are longer, and some of them are very long indeed.",
]

_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
_GROUPED = {**_WIDTH, "num_key_value_heads": 2, "intermediate_size": 48}
_CONFIGURATIONS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {**_GROUPED, "num_hidden_layers": 3}),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 8}),
    "mistral": (MistralConfig, _GROUPED),
    "gemma2": (Gemma2Config, {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": (Phi3Config, {**_GROUPED, "original_max_position_embeddings": 512}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gptneox": (GPTNeoXConfig, {**_WIDTH, "intermediate_size": 48}),
    "opt": (OPTConfig, {**_WIDTH, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": (MixtralConfig, {**_GROUPED, "num_local_experts": 4}),
    "qwen3moe": (
        Qwen3MoeConfig,
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
}
ARCHITECTURES = tuple(_CONFIGURATIONS)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: runs the real default model, or takes more than a few seconds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "default_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE (any text can be encoded) with a ChatML template; '<|im_end|>' is not the eos token."""
    return _train_tokenizer(CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerBase:
    """The same vocabulary without a chat template."""
    return _train_tokenizer(None)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerBase, plain_tokenizer: PreTrainedTokenizerBase) -> TinyModel:
    """`tiny_model(name, template=True, dtype=…, seed=0, **configuration)` -> a fresh (model, tokenizer)."""

    def make(
        name: str, *, template: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any
    ) -> ModelAndTokenizer:
        chosen = tokenizer if template else plain_tokenizer
        return _random_model(name, chosen, seed, config).to(dtype), chosen  # type: ignore[arg-type]

    return make


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of the eleven architecture names in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def default_model() -> ModelAndTokenizer:
    """The real default model; tests that use it are marked slow, and must leave it as they found it."""
    from personae.models.load import load_model

    try:
        return load_model()
    except ModelError as error:
        pytest.skip(f"the default model is neither in the cache nor can it be fetched: {error}")


def _train_tokenizer(template: str | None) -> PreTrainedTokenizerBase:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|pad|>")
    wrapped.chat_template = template
    return wrapped


def _random_model(name: str, tokenizer: PreTrainedTokenizerBase, seed: int, changes: dict[str, Any]) -> PreTrainedModel:
    kind, settings = _CONFIGURATIONS[name]
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(kind(**{**special, **settings, **changes}))
    # The usual 0.02 leaves attention and logits nearly flat, and a wrong mask would go unnoticed.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()  # type: ignore[no-any-return]
