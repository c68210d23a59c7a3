"""Payloads: back and forth, close to the entropy, and nothing damaged gets through."""

from __future__ import annotations

import math
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import ArtefactError
from personae.subnetwork import Mask, decode, encode

SHAPE = (576, 1536)


def random_mask(share: float, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Mask:
    return Mask.from_dropped(np.random.default_rng(seed).random(shape) < share)


def rice(k: int, listed: int, count: int, streams: bytes) -> bytes:
    return packed(struct.pack("<BBQ", k, listed, count) + streams)


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def slow_rice_reader(content: bytes, size: int) -> list[int]:
    """The dropped positions by docs/format.md, one bit at a time."""
    k, listed, count = content[0], content[1], int.from_bytes(content[2:10], "little")
    low, unary = content[10 : 10 + (count * k + 7) // 8], content[10 + (count * k + 7) // 8 :]

    def bit(stream: bytes, j: int) -> int:
        return stream[j // 8] >> (j % 8) & 1

    positions, position, cursor = [], -1, 0
    for j in range(count):
        quotient = 0
        while not bit(unary, cursor):
            quotient += 1
            cursor += 1
        cursor += 1
        position += 1 + (quotient << k) + sum(bit(low, j * k + b) << b for b in range(k))
        positions.append(position)
    return sorted(set(range(size)) - set(positions)) if listed else positions


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.2, 0.3, 0.5, 0.8, 0.99, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_round_trip(rows: int, columns: int, share: float, seed: int) -> None:
    mask = random_mask(share, seed, (rows, columns))
    encoding, payload = encode(mask)
    assert decode(encoding, payload, mask.shape) == mask
    assert encode(mask) == (encoding, payload)
    content = zstandard.ZstdDecompressor().decompress(payload)
    if encoding == "rice+zstd":
        assert slow_rice_reader(content, mask.size) == mask.positions().tolist()
    else:
        assert content == mask.packed().tobytes()


@given(st.sets(st.integers(0, 2**33 - 1), min_size=1, max_size=20))
def test_round_trip_of_a_huge_and_almost_empty_target(positions: set[int]) -> None:
    mask = Mask.from_positions(np.array(list(positions)), (2**16, 2**17))
    assert decode(*encode(mask), mask.shape) == mask


@pytest.mark.parametrize("count", [2**20 - 1, 2**20, 2**20 + 3])
def test_round_trip_where_gaps_fill_more_than_one_chunk(count: int) -> None:
    generator = np.random.default_rng(count)
    positions = np.cumsum(generator.integers(1, 23, count)) - 1
    mask = Mask.from_positions(positions, (int(positions[-1]) + 1, 1))
    encoding, payload = encode(mask)
    assert encoding == "rice+zstd"
    assert decode(encoding, payload, mask.shape) == mask


def test_a_gap_that_spans_chunks_of_the_unary_stream() -> None:
    zeros = bytes(2**18 + 1)  # k = 0, so one gap of 8 weights a byte: a whole chunk without an end of a gap
    payload = rice(0, 0, 2, b"\x01" + zeros + b"\x80")
    assert decode("rice+zstd", payload, (2**11, 2**11)).positions().tolist() == [0, 8 + 8 * (2**18 + 1) + 7]


def test_the_example_of_the_format_page() -> None:
    encoding, payload = encode(Mask.from_positions(np.array([3, 41]), (2, 40)))
    assert encoding == "rice+zstd"
    assert zstandard.ZstdDecompressor().decompress(payload).hex() == "0300" + "0200000000000000" + "2b" + "21"


@pytest.mark.parametrize(
    ("share", "limit", "encoding"),
    [
        (0.002, 1.03, "rice+zstd"),
        (0.01, 1.03, "rice+zstd"),
        (0.05, 1.03, "rice+zstd"),
        (0.2, 1.03, "rice+zstd"),
        (0.3, 1.03, "bits+zstd"),
        (0.5, 1.01, "bits+zstd"),
        (0.9, 1.03, "rice+zstd"),
        (0.998, 1.03, "rice+zstd"),
    ],
)
def test_random_masks_stay_near_their_entropy(share: float, limit: float, encoding: str) -> None:
    bits, entropy = 0.0, 0.0
    for seed, shape in enumerate([SHAPE, (1536, 576), (576, 576)]):
        mask = random_mask(share, seed, shape)
        name, payload = encode(mask)
        assert name == encoding
        bits += 8 * len(payload)
        p = mask.sparsity
        entropy += mask.size * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert bits <= limit * entropy


def test_patterns_take_the_bit_map_where_it_is_smaller() -> None:
    dropped = np.zeros(SHAPE, dtype=np.bool_)
    dropped[:, :192] = True  # whole columns, one in eight
    encoding, payload = encode(Mask.from_dropped(dropped))
    assert encoding == "bits+zstd"
    assert len(payload) < 200


@given(st.sampled_from([0.01, 0.5]), st.integers(0, 10**6), st.integers(0, 7))
def test_no_flipped_bit_changes_a_mask_silently(share: float, offset: int, bit: int) -> None:
    mask = random_mask(share, 3, (40, 50))
    encoding, payload = encode(mask)
    broken = bytearray(payload)
    broken[offset % len(payload)] ^= 1 << bit
    try:
        decoded = decode(encoding, bytes(broken), mask.shape)
    except ArtefactError:
        return
    # a few bits of a zstd frame header say nothing about the content
    assert decoded == mask


@given(st.binary(max_size=60), st.sampled_from(["rice+zstd", "bits+zstd"]), st.booleans())
def test_rubbish_is_refused_or_is_a_mask(content: bytes, encoding: str, in_a_frame: bool) -> None:
    try:
        mask = decode(encoding, packed(content) if in_a_frame else content, (5, 9))
    except ArtefactError:
        return
    assert mask.shape == (5, 9)


@pytest.mark.parametrize(
    ("encoding", "payload", "message"),
    [
        ("gzip", b"", "unknown mask encoding 'gzip'"),
        ("bits+zstd", packed(b"\0"), "does not fit"),
        ("bits+zstd", packed(b"\0\0\0"), "claims more"),
        ("bits+zstd", packed(b"\0\x80"), "does not fit"),
        ("bits+zstd", packed(b"\0\0") + b"x", "zstd says"),
        ("bits+zstd", packed(b"\0\0")[:-1], "zstd says"),
        ("bits+zstd", packed(bytes(10**6)), "claims more"),
        ("bits+zstd", zstandard.ZstdCompressor(write_content_size=False).compress(b"\0\0"), "claims more"),
        ("rice+zstd", packed(b"\0\0"), "cut off"),
        ("rice+zstd", rice(0, 2, 0, b""), "listed=2"),
        ("rice+zstd", rice(5, 0, 1, b"\0\1"), "k=5"),
        ("rice+zstd", rice(0, 0, 16, b"\xff\xff"), "count=16"),
        ("rice+zstd", rice(4, 0, 9, b"\0"), "count=9"),
        ("rice+zstd", rice(0, 0, 1, b""), "0 gaps"),
        ("rice+zstd", rice(0, 0, 1, b"\x03"), "2 gaps"),
        ("rice+zstd", rice(0, 0, 1, b"\x01\x00"), "1 gaps in 2 bytes"),
        ("rice+zstd", rice(0, 0, 0, b"\x00"), "0 gaps in 1 bytes"),
        ("rice+zstd", rice(1, 0, 1, b"\x02\x01"), "behind its last gap"),
        ("rice+zstd", rice(4, 0, 1, b"\0\x08"), "longer than the whole"),
        ("rice+zstd", rice(0, 0, 1, b"\0\x80"), "outside the shape"),
        ("rice+zstd", rice(4, 0, 1, b"\x0f\x01"), "outside the shape"),
    ],
)
def test_damaged_payloads(encoding: str, payload: bytes, message: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        decode(encoding, payload, (3, 5))
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 3), (-1, -3), (2**20, 2**20 + 1)])
def test_shapes_of_no_target(shape: tuple[int, int]) -> None:
    with pytest.raises(ArtefactError, match="not that of a target"):
        decode("rice+zstd", rice(0, 0, 0, b""), shape)


@pytest.mark.parametrize(
    ("encoding", "content", "dropped"),
    [
        ("bits+zstd", bytes(2**21), 0),
        ("bits+zstd", b"\xff" * 2**21, 2**24),
        ("rice+zstd", struct.pack("<BBQ", 0, 0, 2**24) + b"\xff" * 2**21, 2**24),
        ("rice+zstd", struct.pack("<BBQ", 0, 1, 2**24) + b"\xff" * 2**21, 0),
        (
            "rice+zstd",
            struct.pack("<BBQ", 0, 0, 2**19 - 8) + b"\xff" * (2**16 - 1),
            2**19 - 8,
        ),  # as many as a list holds
        ("rice+zstd", struct.pack("<BBQ", 0, 1, 0), 2**24),
    ],
)
def test_memory_is_bounded_by_the_shape_and_not_by_the_content(encoding: str, content: bytes, dropped: int) -> None:
    """A few hundred bytes may hold a gap for every weight; an array of numbers for each would take 128 MB and more."""
    payload = packed(content)
    assert len(payload) < 1000
    tracemalloc.start()
    try:
        mask = decode(encoding, payload, (2**12, 2**12))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask.dropped == dropped
    assert peak < 8 * 2**21 + 60e6
