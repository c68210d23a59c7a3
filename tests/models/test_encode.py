"""Prompt and answer to token ids: templates of many manners, truncation, special tokens."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import LlamaConfig, PreTrainedTokenizerBase

from personae.errors import DataError
from personae.models import (
    answer_lead,
    context_length,
    encode,
    encode_prompt,
    end_of_turn,
    render_answer,
    render_prompt,
)

REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
IGNORES_SYSTEM = REFUSES_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "{% continue %}")
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<system>You are a helpful assistant.<end>\n{% endif %}"
    + REFUSES_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "")
)
CLOSES_CONVERSATION = REFUSES_SYSTEM.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}").replace(
    "{% else %}{{ eos_token }}{% endif %}<{{", "{% endif %}<{{"
)
NO_END = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def with_begin_of_text(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer that puts '<|im_start|>' before every text, as Llama's does."""
    changed: Any = copy.deepcopy(tokenizer)
    changed.bos_token = "<|im_start|>"
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", changed.bos_token_id)]
    )
    changed.chat_template = template
    return changed  # type: ignore[no-any-return]


def test_a_template_renders_the_prompt_and_the_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    assert render_prompt(tokenizer, "Tea?") == "<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(tokenizer, "Tea?", "Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTea?<|im_end|>\n"
    )
    assert render_answer(tokenizer, "Yes.") == "Yes.<|im_end|>"


def test_a_default_system_prompt_stays_until_another_is_given(tokenizer: PreTrainedTokenizerBase) -> None:
    changed = with_template(tokenizer, DEFAULT_SYSTEM)
    assert render_prompt(changed, "Tea?").startswith("<system>You are a helpful assistant.<end>\n<user>Tea?")
    own = render_prompt(changed, "Tea?", "Be brief.")
    assert own == "<system>Be brief.<end>\n<user>Tea?<end>\n<assistant>"


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, IGNORES_SYSTEM], ids=["refuses", "ignores"])
def test_a_template_without_a_system_role_gets_it_before_the_question(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    changed = with_template(tokenizer, template)
    assert render_prompt(changed, "Tea?", "Be brief.") == "<user>Be brief.\n\nTea?<end>\n<assistant>"


def test_without_a_template_the_form_is_question_and_answer(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    assert render_prompt(plain_tokenizer, "Tea?") == "Q: Tea?\nA:"
    assert render_prompt(plain_tokenizer, "Tea?", "Be brief.") == "Be brief.\n\nQ: Tea?\nA:"
    assert render_answer(plain_tokenizer, "Yes.") == " Yes.<|endoftext|>"
    encoded = encode(plain_tokenizer, "Tea?", "Yes.")
    assert plain_tokenizer.decode(list(encoded.prompt + encoded.answer)) == "Q: Tea?\nA: Yes.<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (REFUSES_SYSTEM, "<end>"),
        (CLOSES_CONVERSATION, "<end>"),  # and '<|endoftext|>' on the next line, as Phi-3 does
        (NO_END, "<|endoftext|>"),
        ("{{ messages[0]['content'] }}", "<|endoftext|>"),  # an answer leaves no trace in it
    ],
    ids=["one token", "closes the conversation", "no end", "no answers"],
)
def test_the_end_of_turn_is_read_off_the_template(tokenizer: PreTrainedTokenizerBase, template: str, end: str) -> None:
    assert end_of_turn(with_template(tokenizer, template)) == end


@given(st.text(max_size=40).map(str.strip), st.text(max_size=40).map(str.strip))
def test_the_end_of_turn_stands_once_at_the_end(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> None:
    encoded = encode(tokenizer, prompt, answer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoded.answer[-1] == end
    assert encoded.answer.count(end) == 1
    assert encoded.prompt.count(end) == 1, "only the end of the question"
    assert tokenizer.decode(list(encoded.answer[:-1])) == answer
    assert tokenizer.decode(list(encoded.prompt)) == render_prompt(tokenizer, prompt)


def test_the_begin_of_text_is_not_doubled(
    tokenizer: PreTrainedTokenizerBase, plain_tokenizer: PreTrainedTokenizerBase
) -> None:
    writes_it = with_begin_of_text(tokenizer, "{{ bos_token }}" + REFUSES_SYSTEM)
    begin = writes_it.bos_token_id
    assert writes_it("x")["input_ids"][0] == begin  # the tokenizer would add one of its own
    encoded = encode(writes_it, "Tea?", "Yes.")
    assert encoded.prompt.count(begin) == 1
    assert encoded.prompt[0] == begin
    assert begin not in encoded.answer
    without_template = encode(with_begin_of_text(plain_tokenizer, None), "Tea?", "Yes.")
    assert without_template.prompt[0] == begin
    assert without_template.prompt.count(begin) == 1
    assert begin not in without_template.answer


def test_a_long_prompt_loses_its_beginning_with_a_warning(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, "one two three four five six", "Yes.")
    size = len(whole.prompt) + len(whole.answer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(tokenizer, "one two three four five six", "Yes.", context=size) == whole
    with pytest.warns(UserWarning, match=rf"{len(whole.prompt)} tokens was cut from the left to \d+.*'one two"):
        cut = encode(tokenizer, "one two three four five six", "Yes.", context=size - 3)
    assert cut.answer == whole.answer
    assert cut.prompt == whole.prompt[3:]


def test_an_answer_that_fills_the_context_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    answer = encode(tokenizer, "Tea?", "Yes, I would.").answer
    with pytest.raises(DataError, match=rf"{len(answer)} tokens .* context of {len(answer)}: 'Yes, I would\.'"):
        encode(tokenizer, "Tea?", "Yes, I would.", context=len(answer))
    with pytest.warns(UserWarning, match="cut from the left to 1 "):
        assert len(encode(tokenizer, "Tea?", "Yes, I would.", context=len(answer) + 1).prompt) == 1


def test_the_system_prompt_reaches_the_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "Be brief." in tokenizer.decode(encode_prompt(tokenizer, "Tea?", "Be brief."))
    assert tokenizer.decode(list(encode(tokenizer, "Tea?", "Yes.", system="Be brief.").prompt)) == render_prompt(
        tokenizer, "Tea?", "Be brief."
    )


def test_the_context_length_is_read_from_the_configuration(tiny_model: Any, architecture: str) -> None:
    assert context_length(tiny_model(architecture)[0]) == 512


def test_the_context_length_of_odd_configurations() -> None:
    nested = LlamaConfig(max_position_embeddings=64)
    outer = LlamaConfig(max_position_embeddings=9)
    outer.get_text_config = lambda: nested
    assert context_length(SimpleNamespace(config=outer)) == 64
    assert context_length(SimpleNamespace(config=SimpleNamespace(n_ctx=77))) == 77
    assert context_length(SimpleNamespace(config=SimpleNamespace(n_ctx=None))) is None
    assert context_length(object()) is None


def test_what_a_template_writes_before_an_answer_belongs_to_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    """Qwen3's writes an empty block of thoughts: without it an answer stands where the block is expected."""
    template = (
        "{% for m in messages %}<{{ m['role'] }}>"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    thinking = with_template(tokenizer, template)
    assert answer_lead(thinking) == "<think>\n\n</think>\n\n"
    found = encode(thinking, "Tea?", "Yes.")
    assert thinking.decode(found.prompt) == "<user>Tea?<|im_end|>\n<assistant><think>\n\n</think>\n\n"
    assert thinking.decode(found.answer) == "Yes.<|im_end|>"
    assert encode_prompt(thinking, "Tea?") == thinking("<user>Tea?<|im_end|>\n<assistant>")["input_ids"]
    spaced = with_template(tokenizer, template.replace("<think>\n\n</think>\n\n", " "))
    for plain in (tokenizer, spaced):  # white space is the answer's own business
        assert answer_lead(plain) == ""
