"""Bytes of single tokens: joined, they are the text, whatever the tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from personae.runtime.spelling import speller


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerBase:
    """As Llama 2's: '▁' before words, bytes for what the vocabulary lacks, and no space where a text begins."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "▁t", "▁th", "▁the", "é"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    core = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


def joined(tokenizer: PreTrainedTokenizerBase, text: str) -> bytes:
    return b"".join(map(speller(tokenizer), tokenizer(text, add_special_tokens=False)["input_ids"]))


@given(st.text(max_size=20))
def test_bytes_of_a_byte_level_tokenizer_are_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert joined(tokenizer, text) == text.encode()


def test_a_character_of_several_tokens_is_all_there(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    assert [speller(tokenizer)(token) for token in ids] == [b"a", b"\xf0", b"\x9f", b"\x99", b"\x82"]


@pytest.mark.parametrize("text", ["the the", "the  é the", "thé 🙂 the", "🙂"])
def test_bytes_of_a_sentencepiece_tokenizer_are_the_text(sentencepiece: PreTrainedTokenizerBase, text: str) -> None:
    assert joined(sentencepiece, text) == f" {text}".encode()  # it puts a space before every text


def test_a_word_keeps_the_space_before_it(sentencepiece: PreTrainedTokenizerBase) -> None:
    spell = speller(sentencepiece)
    known = sentencepiece.convert_tokens_to_ids
    assert [spell(known(piece)) for piece in ("▁the", "t", "▁", "é", "<0xC3>")] == [
        b" the", b"t", b" ", "é".encode(), b"\xc3",
    ]  # fmt: skip


def test_pieces_of_words() -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    assert joined(PreTrainedTokenizerFast(tokenizer_object=core), "playing play") == b" playing play"


def test_tokens_that_are_no_text(tokenizer: PreTrainedTokenizerBase, sentencepiece: PreTrainedTokenizerBase) -> None:
    assert speller(tokenizer)(tokenizer.convert_tokens_to_ids("<|im_end|>")) == b"<|im_end|>"
    for each in (tokenizer, sentencepiece):
        assert (
            speller(each)(len(each) + 9) == b""
        )  # a place of the model's last layer that the tokenizer has no use for
