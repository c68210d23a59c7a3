"""The bytes that single tokens stand for, so that those of an answer, joined, are its text."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

__all__ = ["speller"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte token of sentencepiece


def speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """A function from a token to its bytes; several tokens may share a character, and a word keeps the space before it.

    A tokenizer decodes a token alone as if a text began and ended there: bytes of an unfinished character are then
    lost, and with sentencepiece the space before a word.
    """
    if "ByteLevel" in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)):
        return lambda token: _byte_level(str(tokenizer.convert_ids_to_tokens(token) or ""))
    return lambda token: _behind_itself(tokenizer, token)


def _byte_level(piece: str) -> bytes:
    """What the byte-level decoder makes of a piece: a special token may stand there as it is."""
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:
        return piece.encode("utf-8", "replace")


def _behind_itself(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """Of a byte token its byte, and else what is new in the text when the token follows."""
    if byte := _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(token))):
        return bytes.fromhex(byte[1])
    once, twice = (
        str(tokenizer.decode([token] * times, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for times in (1, 2)
    )
    return twice[len(once) :].encode("utf-8", "replace")


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for themselves, and those from U+0100 on for the other bytes in order. Source:
    Radford et al. 2019 (GPT-2), `bytes_to_unicode` of its encoder.
    """
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in own)
    return {**{chr(byte): byte for byte in own}, **{chr(256 + place): byte for place, byte in enumerate(others)}}


_BYTES = _byte_characters()
