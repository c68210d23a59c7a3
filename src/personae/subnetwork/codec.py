"""Mask ↔ bytes, close to the entropy n·H₂(p) from 0.01 % to 99.99 % dropped weights.

Two named encodings; the smaller result is kept.

`bits+zstd`: one bit a weight (set = dropped), then zstd. zstd's Huffman stage brings random bits of any
density above about 1/8 to within a few per cent of their entropy, and repeated rows far below it.

`rice+zstd`: the gaps between listed positions, Golomb-Rice coded. Gaps of random positions are geometric,
for which a Rice code with a fitted parameter k is within a few per cent of the optimum (Golomb 1966; Rice
and Plaunt 1971). A gap g is split into g >> k in unary and the k low bits; both go to bit streams of their
own, so that all of it is array arithmetic:

    u8 k | u8 listed (0: the dropped weights, 1: the kept ones) | u64 count, little endian
    low bits:  count · k bits, each gap's lowest bit first, padded with 0 to a byte
    unary:     for each gap (g >> k) zeros and a one, padded with 0 to a byte

where gap i = position i - position i-1 - 1 and position -1 is -1. The zstd frame carries its content size
and a checksum.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
import zstandard

from personae.errors import ArtefactError
from personae.subnetwork.bits import Bits, Positions, count_bits, inverted, set_bits, unpacked
from personae.subnetwork.mask import Mask, is_sparse

__all__ = ["ENCODINGS", "LARGEST_TARGET", "compressed", "decode", "decompressed", "encode"]

BITS = "bits+zstd"
RICE = "rice+zstd"
ENCODINGS = (BITS, RICE)

_LEVEL = 9
_RICE_HEADER = struct.Struct("<BBQ")
_CHUNK = 1 << 20  # gaps handled at once; a multiple of 8, so that chunks of low bits end on whole bytes
LARGEST_TARGET = 2**40  # weights of one target, several times the largest model there is


def encode(mask: Mask) -> tuple[str, bytes]:
    """Name of the encoding and the payload, the smaller of the encodings that can win at this density."""
    listed = min(mask.dropped, mask.kept)
    payloads: list[tuple[str, bytes]] = []
    # Between 1/16 and 1/4 both are tried, since masks with a pattern may favour either; outside, one of
    # them cannot win on random masks, and trying it would take most of the time (the bit map of a 0.2 %
    # mask is 50 times its payload).
    if 4 * listed <= mask.size:
        payloads.append((RICE, compressed(_rice_encoded(mask))))
    if 16 * listed >= mask.size:
        payloads.append((BITS, compressed(mask.packed().tobytes())))
    return min(payloads, key=lambda named: len(named[1]))


def decode(encoding: str, payload: bytes, shape: tuple[int, int]) -> Mask:
    """The mask of a payload of a target of shape (out, in).

    Memory is at most eight bit maps of out · in bits and some tens of MB, whatever the payload claims.

    Raises:
        ArtefactError: unknown encoding, or a payload that is damaged or does not fit the shape.
    """
    size = shape[0] * shape[1]
    if min(shape) < 1 or size > LARGEST_TARGET:
        raise _damaged(f"the shape {shape} is not that of a target (both at least 1, at most 2⁴⁰ weights)")
    if encoding == BITS:
        content = decompressed(payload, (size + 7) // 8)
        packed = np.frombuffer(content, dtype=np.uint8)
        if packed.size != (size + 7) // 8 or (size % 8 and int(packed[-1]) >> (size % 8)):
            raise _damaged(f"its bit map does not fit the shape {shape}")
        return Mask.from_packed(packed, shape)
    if encoding == RICE:
        # k = 0 costs at most one bit a weight and the encoder takes the cheapest k, so no valid stream is
        # longer than this.
        content = decompressed(payload, _RICE_HEADER.size + (size + 7) // 8 + 2)
        return _rice_decoded(content, shape)
    raise ArtefactError(
        f"unknown mask encoding {encoding!r}; this version reads {', '.join(ENCODINGS)}: update personae"
    )


# ------------------------------------------------------------------------ rice


def _rice_encoded(mask: Mask) -> bytes:
    lists_kept = mask.kept < mask.dropped
    positions = (~mask).positions() if lists_kept else mask.positions()
    gaps = np.diff(positions, prepend=np.int64(-1)) - 1
    k = _best_k(gaps)
    header = _RICE_HEADER.pack(k, int(lists_kept), gaps.size)
    return header + _low_bits(gaps, k).tobytes() + _unary(gaps >> k).tobytes()


def _best_k(gaps: Positions) -> int:
    """The k with the fewest bits, Σ (g >> k) + count·(k + 1), searched around that of geometric gaps."""
    if not gaps.size:
        return 0
    guess: int = round(math.log2(float(gaps.mean()) * math.log(2) + 1))
    candidates = (0, *range(max(0, guess - 2), guess + 3))
    costs: dict[int, int] = {k: int((gaps >> k).sum()) + gaps.size * (k + 1) for k in candidates}
    return min(costs, key=lambda k: (costs[k], k))


def _low_bits(gaps: Positions, k: int) -> Bits:
    if k == 0:
        return np.empty(0, dtype=np.uint8)
    chunks = []
    for start in range(0, gaps.size, _CHUNK):
        octets = gaps[start : start + _CHUNK].astype("<u8").view(np.uint8).reshape(-1, 8)
        bits = np.unpackbits(octets, axis=1, count=k, bitorder="little")  # (gaps, k)
        chunks.append(np.packbits(bits.reshape(-1), bitorder="little"))
    return np.concatenate([np.empty(0, dtype=np.uint8), *chunks])


def _unary(quotients: Positions) -> Bits:
    ends = np.cumsum(quotients + 1) - 1  # where each gap's one stands
    flags = np.zeros(int(ends[-1]) + 1 if ends.size else 0, dtype=np.uint8)
    flags[ends] = 1
    return np.packbits(flags, bitorder="little")


def _rice_decoded(content: bytes, shape: tuple[int, int]) -> Mask:
    size = shape[0] * shape[1]
    if len(content) < _RICE_HEADER.size:
        raise _damaged("its Rice header is cut off")
    k, listed, count = _RICE_HEADER.unpack_from(content)
    low_bytes = (count * k + 7) // 8
    unary_start = _RICE_HEADER.size + low_bytes
    if k > size.bit_length() or listed > 1 or count > size or unary_start > len(content):
        raise _damaged(f"its Rice header (k={k}, listed={listed}, count={count}) does not fit the shape {shape}")
    low = np.frombuffer(content, dtype=np.uint8, count=low_bytes, offset=_RICE_HEADER.size)
    unary = np.frombuffer(content, dtype=np.uint8, offset=unary_start)
    gaps = count_bits(unary)
    if gaps != count or (unary.size > 0 and not unary[-1]):
        raise _damaged(f"it lists {gaps} gaps in {unary.size} bytes where its header says {count}")
    if low_bytes and (count * k) % 8 and int(low[-1]) >> ((count * k) % 8):
        raise _damaged("bits behind its last gap are set")
    chunks = _listed_positions(low, unary, k, shape)
    if not listed and is_sparse(count, size):
        return Mask.from_positions(np.concatenate([np.empty(0, dtype=np.int64), *chunks]), shape)
    packed = np.zeros((size + 7) // 8, dtype=np.uint8)
    for positions in chunks:
        set_bits(packed, positions)
    return Mask.from_packed(inverted(packed, size) if listed else packed, shape)


def _listed_positions(low: Bits, unary: Bits, k: int, shape: tuple[int, int]) -> Iterator[Positions]:
    """The listed positions in rising order, at most `_CHUNK` at once: a list may be 64 times as long as its payload."""
    size = shape[0] * shape[1]
    done, position, end = 0, -1, -1  # gaps read, the last listed position, the last one in the unary stream
    for start in range(0, unary.size, _CHUNK // 8):
        octets = unary[start : start + _CHUNK // 8]
        ends = np.flatnonzero(unpacked(octets)) + 8 * start
        if not ends.size:
            continue
        quotients = np.diff(ends, prepend=end) - 1
        if int(quotients.max()) > size >> k:
            raise _damaged("a gap is longer than the whole target")
        steps = (quotients.astype(np.int64) << k) + _from_low_bits(low, done, ends.size, k) + 1
        positions: Positions = position + np.cumsum(steps)  # no overflow: 2²⁰ steps, each at most 2·size + 1 < 2⁴²
        done, position, end = done + ends.size, int(positions[-1]), int(ends[-1])
        if position >= size:
            raise _damaged(f"it lists a weight outside the shape {shape}")
        yield positions


def _from_low_bits(low: Bits, first: int, gaps: int, k: int) -> Positions:
    """The low bits of gaps `first` to `first + gaps - 1`, (gaps,)."""
    values = np.zeros(gaps, dtype=np.int64)
    if k == 0:
        return values
    begin, end = first * k, (first + gaps) * k  # bits
    flat = np.unpackbits(low[begin // 8 : (end + 7) // 8], bitorder="little")
    bits = flat[begin % 8 :][: gaps * k].reshape(gaps, k)
    for bit in range(k):
        values |= bits[:, bit].astype(np.int64) << bit
    return values


# ------------------------------------------------------------------------ zstd


def compressed(content: bytes, *, level: int = _LEVEL) -> bytes:
    """One zstd frame with its content size and a checksum."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return compressor.compress(content)


def decompressed(payload: bytes, limit: int) -> bytes:
    """The content of one zstd frame that says its own size, at most `limit` bytes, nothing behind it."""
    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or size > limit:
            raise _damaged(f"it claims more than the {limit} bytes that its shape allows")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _damaged(f"zstd says: {error}") from error


def _damaged(reason: str) -> ArtefactError:
    return ArtefactError(f"compressed data are damaged: {reason}; fetch or make the file again")
