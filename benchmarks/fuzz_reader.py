"""Does any file make the reader of `.persona` files do something else than read it or refuse it?

    python -m benchmarks.fuzz_reader

Inputs are made from small valid files of both format versions by a seeded generator each, so every one can be made
again from its kind and number. Mutations know the format: wherever a change would only be caught by a digest, a hash or
a length, these are made to fit, so that what lies behind them is reached. For every input `load` must return an
artefact or raise `ArtefactError`; what is read must come back unchanged after it is written, and after a persona is
removed. Anything else is a crash: another exception, or an allocation beyond the limit on address space that the
process gives itself, far above what any honest input would take.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import resource
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from personae.errors import ArtefactError
from personae.subnetwork import (
    Artefact,
    Mask,
    ModelIdentity,
    Provenance,
    Subnetwork,
    inspect,
    load,
    remove_persona,
    save,
)
from personae.subnetwork.layout import content_hash

SEED = 0
INPUTS = 120_000
MEMORY_FOLDER = Path("/dev/shm")  # used where it exists: on a disk, flushing would take most of the time
ADDRESS_SPACE = 400_000_000  # bytes more than the process has at the start

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 256, 4095, 65535, 65536, 10**6, 2**26),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**40 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *(-1, -8, -(2**31), -(2**63), 0.5, -0.0, 1e308, 1e-320),
)
STRINGS = (
    *("", " ", "/", "a/b", "consensus", "bits+zstd", "rice+zstd", "1", "2", "null"),
    *("\0", "\n", "\ud800", "é", "𝔭", "n" * 101),
)
SHAPES = {"down": (48, 64), "tiny": (3, 5), "up": (40, 65)}


@dataclass
class Parts:
    """A file taken apart: what it says and what it holds."""

    description: Any
    payloads: dict[str, bytes]
    version: str

    def entries(self) -> dict[str, Any]:
        """Tensor name → entry of the description, for those entries that still have their form."""
        found: dict[str, Any] = {}
        try:
            found |= {f"/{target}": entry for target, entry in self.description.get("consensus", {}).items()}
            for persona in self.description["personas"]:
                found |= {f"{persona['name']}/{target}": entry for target, entry in persona["payloads"].items()}
        except (AttributeError, KeyError, TypeError):
            pass
        return {name: entry for name, entry in found.items() if isinstance(entry, dict)}

    def put(self, name: str, payload: bytes) -> None:
        """Change a payload, its length and its hash."""
        self.payloads[name] = payload
        if name in self.entries():
            self.entries()[name] |= {"length": len(payload), "blake2b": content_hash(payload)}

    def metadata(self, description: bytes | None = None) -> dict[str, Any]:
        """The four strings; `description`: the compressed description, if it is not that of the parts."""
        if description is None:
            description = frame(json.dumps(self.description).encode())
        text = base64.b64encode(description).decode()
        return {
            "format": "persona",
            "format_version": self.version,
            "personae": text,
            "digest": content_hash(text.encode()),
        }

    def container(self) -> dict[str, Any]:
        """The tensors of the header, one behind the other."""
        tensors, offset = {}, 0
        for name, payload in sorted(self.payloads.items()):
            end = offset + len(payload)
            tensors[name] = {"data_offsets": [offset, end], "dtype": "U8", "shape": [len(payload)]}
            offset = end
        return tensors

    def file(self, metadata: dict[str, Any] | None = None, container: dict[str, Any] | None = None) -> bytes:
        """The whole file."""
        header = {"__metadata__": metadata or self.metadata(), **(container or self.container())}
        return with_header(
            json.dumps(header).encode(), b"".join(payload for _, payload in sorted(self.payloads.items()))
        )


def with_header(header: bytes, rest: bytes) -> bytes:
    """A container with this header, padded."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + rest


def frame(content: bytes) -> bytes:
    """One honest zstd frame."""
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(content)


def take_apart(raw: bytes) -> Parts:
    """The parts of a valid file."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    text = zstandard.ZstdDecompressor().decompress(base64.b64decode(metadata["personae"]))
    payloads = {
        name: raw[8 + length :][tensor["data_offsets"][0] : tensor["data_offsets"][1]]
        for name, tensor in header.items()
    }
    return Parts(json.loads(text), payloads, metadata["format_version"])


def valid_files() -> list[bytes]:
    """Files of version 1 (sparse, dense, nearly all dropped) and of version 2 (three alike, one not)."""
    generator = np.random.default_rng(SEED)
    model = ModelIdentity(id="fuzz", fingerprint="f00d", architecture="L", dtype="float32", targets=SHAPES)

    def persona(name: str, dropped: dict[str, Any]) -> Subnetwork:
        masks = {target: Mask.from_dropped(bits) for target, bits in dropped.items()}
        return Subnetwork(name, masks, Provenance(method="directed", parameters={"a": [1, None]}, sparsity=0.5), "über")

    def draw(share: float) -> dict[str, Any]:
        return {target: generator.random(shape) < share for target, shape in SHAPES.items()}

    common = draw(0.5)
    flipped = [{t: bits ^ (generator.random(bits.shape) < 0.01) for t, bits in common.items()} for _ in range(5)]
    alone = [persona(name, draw(share)) for name, share in (("sparse", 0.02), ("dense", 0.5), ("bare", 0.97))]
    alike = [persona(f"p{i}", bits) for i, bits in enumerate(flipped)] + [persona("stranger", draw(0.03))]
    files = []
    for personas in (alone, alike, alone[:1]):
        with tempfile.TemporaryDirectory() as folder:
            save(Artefact(model, {p.name: p for p in personas}, {"note": "fuzz"}), Path(folder) / "x.persona")
            files.append((Path(folder) / "x.persona").read_bytes())
    assert [take_apart(raw).version for raw in files] == ["1", "2", "1"], "the file that should share does not"
    return files


# ------------------------------------------------------------------- mutations
# Each takes a generator and a valid file, and gives the bytes of an input.


def bytes_of_the_file(chance: random.Random, raw: bytes) -> bytes:
    """Flipped bits, and pieces cut out, doubled, put in and cut off, anywhere."""
    return damaged(chance, raw)


def header_length(chance: random.Random, raw: bytes) -> bytes:
    """Another length of the header."""
    length = struct.unpack("<Q", raw[:8])[0]
    near = (length - 1, length + 1, length - 8, length + 8, len(raw) - 8, len(raw) - 7, len(raw), 10**8, 10**8 + 1)
    chosen = chance.choice([*near, *(n for n in NUMBERS if isinstance(n, int) and 0 <= n < 2**64)])
    return struct.pack("<Q", chosen) + raw[8 : chance.choice([len(raw), len(raw), 8, 9, 8 + length, 16])]


def container(chance: random.Random, raw: bytes) -> bytes:
    """Offsets that overlap, leave gaps or lie outside; other types, shapes and names; names that stand twice."""
    parts = take_apart(raw)
    tensors = parts.container()
    names = list(tensors)
    for _ in range(chance.randint(1, 3)):
        name, other = chance.choice(names), chance.choice(names)
        tensor = tensors.get(name)
        change = chance.randrange(7)
        if tensor is None or change == 0:
            tensors[chance.choice([*STRINGS, f"{name}x"])] = copy.deepcopy(tensors.get(other))
        elif change == 1:
            tensor["data_offsets"] = list(parts.container()[other]["data_offsets"])  # two of the same bytes
        elif change == 2:
            tensor["data_offsets"][chance.randrange(2)] += chance.choice([-8, -1, 1, 8, 10**6, 2**62])
        elif change == 3:
            tensor["dtype"] = chance.choice(["I8", "BOOL", "F64", "F4", "F8_E4M3", "u8", "", 8])
        elif change == 4:
            tensor["shape"] = chance.choice(
                [[], [0], [1, *tensor["shape"]], [*tensor["shape"], 1], [chance.choice(NUMBERS)]]
            )
        elif change == 5:
            del tensors[name]
        else:
            tensors = mutated(chance, tensors)
            break  # what is left may have any form
    if not isinstance(tensors, dict) or chance.random() < 0.1:
        twice = json.dumps(parts.container())[1:-1]
        text = f'{{"__metadata__":{json.dumps(parts.metadata())},{twice},{twice}}}'
        return with_header(text.encode(), b"".join(p for _, p in sorted(parts.payloads.items())))
    return parts.file(container=tensors)


def metadata(chance: random.Random, raw: bytes) -> bytes:
    """The four strings: other values, more of them, fewer."""
    parts = take_apart(raw)
    strings = parts.metadata()
    key = chance.choice(sorted(strings))
    change = chance.randrange(4)
    if change == 0:
        del strings[key]
    elif change == 1:
        strings[chance.choice(STRINGS)] = chance.choice(STRINGS)
    elif change == 2:
        strings[key] = chance.choice([*STRINGS, *NUMBERS, None, [], {}])
    else:
        text = damaged(chance, strings["personae"].encode()).decode("latin-1")
        strings |= {"personae": text, "digest": content_hash(text.encode())}
    return parts.file(metadata=strings)


def description(chance: random.Random, raw: bytes) -> bytes:
    """Anything in the description, which gets its digest."""
    parts = take_apart(raw)
    for _ in range(chance.randint(1, 3)):
        parts.description = mutated(chance, parts.description)
    return parts.file()


def description_text(chance: random.Random, raw: bytes) -> bytes:
    """The description's JSON as text: damaged, nested deeply, with keys that stand twice."""
    parts = take_apart(raw)
    text = json.dumps(parts.description)
    change = chance.randrange(4)
    if change == 0:
        content = damaged(chance, text.encode())
    elif change == 1:
        depth = chance.choice([10, 127, 128, 200, 201, 255, 256, 1000, 100_000])
        opening, closing = chance.choice([("[", "]"), ('{"a":', "}")])
        content = text.replace('"fuzz"', opening * depth + "1" + closing * chance.choice([0, depth, depth]), 1).encode()
    elif change == 2:
        number = chance.choice(
            ["1" * 4299, "1" * 4301, "1e999", "-" + "9" * 400, "NaN", "Infinity", "01", "1." + "3" * 9999]
        )
        content = re.sub(r"\b\d+\b", lambda found: number if chance.random() < 0.02 else found[0], text).encode()
    else:
        content = (text[:-1] + "," + text[1:]).encode()
    return parts.file(metadata=parts.metadata(frame(content)))


def shapes(chance: random.Random, raw: bytes) -> bytes:
    """Shapes, counts and lengths that model, persona and payload agree on, however large."""
    parts = take_apart(raw)
    target = chance.choice(sorted(SHAPES))
    sides = (1, 3, 48, 64, 2**11, 2**13, 2**39, 2**40, 10**30, 10**4000, -1, 0)  # some MB, or more than any machine has
    shape = [chance.choice(sides), chance.choice(sides)]
    parts.description["model"]["targets"][target] = shape
    for name, entry in parts.entries().items():
        if name.endswith(f"/{target}"):
            entry["shape"] = shape
            if chance.random() < 0.5:
                entry["dropped"] = chance.choice([0, 1, entry["dropped"], min(shape[0] * shape[1], 10**30), *NUMBERS])
            if chance.random() < 0.5:
                entry["encoding"] = chance.choice(["bits+zstd", "rice+zstd"])
            if chance.random() < 0.5:
                parts.put(name, frame(rice_content(chance)))
            if chance.random() < 0.3:  # every weight dropped: the smallest payload of the largest mask
                parts.put(name, frame(struct.pack("<BBQ", 0, 1, 0)))
                entry |= {"encoding": "rice+zstd", "dropped": min(shape[0] * shape[1], 10**30)}
    return parts.file()


def payload_bytes(chance: random.Random, raw: bytes) -> bytes:
    """Payloads whose zstd frame is damaged; hashes and lengths fit."""
    parts = take_apart(raw)
    name = chance.choice(sorted(parts.payloads))
    parts.put(name, damaged(chance, parts.payloads[name]) or b"\0")
    return parts.file()


def payload_content(chance: random.Random, raw: bytes) -> bytes:
    """Payloads whose content is damaged inside a good frame, or is that of the other encoding; the rest fits."""
    parts = take_apart(raw)
    name = chance.choice(sorted(parts.payloads))
    content = zstandard.ZstdDecompressor().decompress(parts.payloads[name])
    change = chance.randrange(4)
    if change == 0:
        parts.entries()[name]["encoding"] = chance.choice(["bits+zstd", "rice+zstd", *STRINGS])
    elif change == 1 and len(content) > 10:  # the Rice header, or the first bytes of a bit map
        header = bytearray(content[:10])
        header[chance.randrange(10)] = chance.choice([0, 1, 2, 3, 8, 63, 64, 127, 128, 255])
        parts.put(name, frame(bytes(header) + content[10:]))
    elif change == 2:
        parts.put(name, frame(rice_content(chance)))
    else:
        parts.put(name, frame(damaged(chance, content)))
    if chance.random() < 0.3:
        parts.entries()[name]["dropped"] += chance.choice([-1, 1])
    return parts.file()


def frames(chance: random.Random, raw: bytes) -> bytes:
    """zstd frames made by hand: any claimed size, any window, runs that blow up, several frames, skippable ones."""
    parts = take_apart(raw)
    crafted = crafted_frame(chance)
    if chance.random() < 0.3:
        return parts.file(metadata=parts.metadata(crafted))
    parts.put(chance.choice(sorted(parts.payloads)), crafted)
    return parts.file()


def bombs(chance: random.Random, raw: bytes) -> bytes:
    """Honest frames of a few kilobytes that hold megabytes: zeros, ones, spaces, brackets."""
    parts = take_apart(raw)
    size = chance.choice([10**6, 2**20 + 1, 2**24, 10**8, 10**8 + 1, 2**28])
    if chance.random() < 0.5:
        return parts.file(metadata=parts.metadata(bomb(chance.choice([b" ", b"[", b"[[],", b'{"":', b"0,"]), size)))
    name = chance.choice(sorted(parts.payloads))
    parts.put(name, bomb(chance.choice([b"\0", b"\xff", b"\1\0"]), size))
    if chance.random() < 0.5:  # the largest that this shape allows, all of it ones or zeros
        rows, columns = SHAPES[name.split("/")[1]]
        fill = chance.choice([b"\0", b"\xff"])
        parts.put(name, frame(fill * ((rows * columns + 7) // 8 + chance.choice([-1, 0, 12, 13]))))
    return parts.file()


def sharing(chance: random.Random, raw: bytes) -> bytes:
    """References to a consensus that is not there, has a base itself, is another one, or is not referred to."""
    parts = take_apart(raw)
    target = chance.choice(sorted(SHAPES))
    for _ in range(chance.randint(1, 3)):
        consensus = parts.description.setdefault("consensus", {})
        name = chance.choice(sorted(parts.entries()))
        change = chance.randrange(6)
        if change == 0:
            parts.entries()[name]["base"] = chance.choice(["consensus", None, "p0", "", 1, True, {}])
        elif change == 1:
            consensus.pop(target, None)
            if chance.random() < 0.7:
                parts.payloads.pop(f"/{target}", None)
        elif change == 2:
            consensus[target] = copy.deepcopy(parts.entries()[name])
            parts.payloads[f"/{target}"] = parts.payloads.get(name, b"\0")
        elif change == 3 and target in consensus and name in parts.payloads:
            parts.put(f"/{target}", parts.payloads[name])
        elif change == 4 and target in consensus:
            consensus[target]["base"] = "consensus"
        else:
            parts.version = chance.choice(["1", "2"])
    if not parts.description["consensus"] and chance.random() < 0.8:
        del parts.description["consensus"]
    return parts.file()


KINDS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    mutation.__name__: mutation
    for mutation in (
        *(bytes_of_the_file, header_length, container, metadata, description, description_text),
        *(shapes, payload_bytes, payload_content, frames, bombs, sharing),
    )
}


# ----------------------------------------------------------- what they are made of


def damaged(chance: random.Random, raw: bytes) -> bytes:
    """A few random changes of bytes."""
    changed = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 8])):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice([1, 2, 4, 8, 64]))
        change = chance.randrange(6)
        if change == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif change == 1 and at < len(changed):
            changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x5B])
        elif change == 2:
            del changed[at:end]
        elif change == 3:
            changed[at:at] = changed[at:end]
        elif change == 4:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        else:
            del changed[at + chance.randrange(64) :]
    return bytes(changed)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(object or list, key) of everything in a JSON value."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def mutated(chance: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed, removed, doubled, moved or renamed."""
    whole = copy.deepcopy(value)
    where = places(whole) if isinstance(whole, dict | list) else []
    if not where or chance.random() < 0.01:
        return chance.choice([*NUMBERS, *STRINGS, None, True, [], {}])
    holder, key = chance.choice(where)
    change = chance.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1:
        other, place = chance.choice(where)
        holder[key] = copy.deepcopy(other[place])
    elif change == 2 and isinstance(holder, dict):
        holder[chance.choice(STRINGS)] = holder.pop(key) if chance.random() < 0.5 else copy.deepcopy(holder[key])
    elif change == 2:
        holder.append(copy.deepcopy(holder[key]))
    elif isinstance(holder[key], int | float) and change < 5:
        holder[key] = chance.choice([*NUMBERS, holder[key] + 1, holder[key] - 1])
    elif isinstance(holder[key], str) and change < 5:
        holder[key] = chance.choice([*STRINGS, holder[key] + "x", holder[key][:-1]])
    else:
        holder[key] = chance.choice([*NUMBERS, *STRINGS, None, False, True, [], {}, [[]], {"": {}}])
    return whole


def rice_content(chance: random.Random) -> bytes:
    """A Rice header of edge values and random streams behind it."""
    k = chance.choice([0, 0, 1, 2, 5, 8, 12, 21, 41, 62, 63, 64, 255])
    count = chance.choice([0, 1, 2, 8, 9, 15, 3072, 2**20, 2**31, 2**40, 2**63, 2**64 - 1])
    stream = chance.choice([b"", b"\1", b"\xff", b"\x80", chance.randbytes(chance.randint(1, 400)), b"\xff" * 384])
    return struct.pack("<BBQ", k, chance.choice([0, 0, 1, 1, 2]), count) + stream


def crafted_frame(chance: random.Random) -> bytes:
    """A zstd frame (RFC 8878) put together by hand."""
    if chance.random() < 0.05:  # a skippable frame
        return struct.pack("<II", 0x184D2A50 + chance.randrange(16), chance.choice([0, 4, 2**32 - 1])) + bytes(4)
    size_flag, single = chance.randrange(4), chance.randrange(2)
    checksum, dictionary = chance.randrange(2), chance.choice([0, 0, 0, 1, 3])
    made = struct.pack("<IB", 0xFD2FB528, size_flag << 6 | single << 5 | checksum << 2 | dictionary)
    if not single:
        made += bytes([chance.choice([0, 0x58, 0x88, 0xA0, 0xF8, 0xFF])])  # a window of 1 KB to 3.75 TB
    made += bytes((0, 1, 2, 4)[dictionary])
    width = (single, 2, 4, 8)[size_flag]
    honest = chance.choice([2, 384, 325, 100_000])
    claimed = chance.choice([honest, honest, 0, 2**20, 2**31, 10**8, 2**63, 2**64 - 1])
    made += (claimed & (1 << 8 * width) - 1).to_bytes(width, "little")
    left = honest
    while left > 0:
        run = min(left, 2**17 - 1)
        left -= run
        kind = chance.choice([1, 1, 1, 0, 2, 3])  # run, raw, compressed, reserved
        made += (int(left == 0) | kind << 1 | run << 3).to_bytes(3, "little")
        made += b"\0" if kind == 1 else chance.randbytes(min(run, 64))
    return made + chance.choice([b"", chance.randbytes(4), frame(b"x")])


_BOMBS: dict[tuple[bytes, int], bytes] = {}


def bomb(unit: bytes, size: int) -> bytes:
    """A frame of about `size` bytes of one repeated unit, made once and in pieces."""
    if (unit, size) not in _BOMBS:
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(
            size=size // len(unit) * len(unit)
        )
        pieces, left = [], size // len(unit)
        while left:
            now = min(left, 2**20)
            left -= now
            pieces.append(compressor.compress(unit * now))
        _BOMBS[unit, size] = b"".join([*pieces, compressor.flush()])
    return _BOMBS[unit, size]


# ------------------------------------------------------------------------ the run


def mutant(kind: str, number: int, files: list[bytes]) -> bytes:
    """The input of this kind and number."""
    chance = random.Random(f"{SEED}/{kind}/{number}")
    return KINDS[kind](chance, chance.choice(files))


def try_reading(raw: bytes, path: Path) -> str:
    """What the reader says of an input: '' if it reads it, else the refusal without what is particular to the input.

    Errors: whatever the reader raises besides `ArtefactError`, and `AssertionError` where something read is not stable.
    """
    path.write_bytes(raw)
    try:
        artefact = load(path)
    except ArtefactError as error:
        if isinstance(error.__cause__, MemoryError):
            raise AssertionError("memory was taken for what should have been refused before") from error
        return message_class(str(error), str(path))
    header = inspect(path)
    said = {
        (persona.name, t): payload.dropped for persona in header.personas for t, payload in persona.payloads.items()
    }
    found = {(name, t): mask.dropped for name in artefact for t, mask in artefact[name].masks.items()}
    assert (header.names, said) == (artefact.names, found), "what was read is not what the file says"
    again = path.with_name("again.persona")
    save(artefact, again)
    assert load(again) == artefact, "what was read is not what is written"
    if artefact.names:
        remove_persona(path, artefact.names[0])
        assert load(path) == artefact.without(artefact.names[0]), "removing one persona changed another"
    return ""


def message_class(message: str, path: str) -> str:
    """A message without paths, names and numbers."""
    text = message.replace(path, "FILE").replace("\n", " ")
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", text)
    text = re.sub(r"(mask|consensus|payload|target) (of )?[^ ]*( in)?", r"\1 …", text)
    text = re.sub(r"at '…': .*", "at '…'", text)
    text = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", text)
    return re.sub(r"(#, )+#|\([^()]*(\([^()]*\))*[^()]*\)?", "(…)", text)[:110]


def run(inputs: int) -> dict[str, Any]:
    """Read `inputs` inputs, as many of each kind."""
    files = valid_files()
    refusals: Counter[str] = Counter()
    kinds = {kind: Counter[str]() for kind in KINDS}
    crashes: list[dict[str, Any]] = []
    slowest: tuple[float, str, int] = (0.0, "", 0)
    before = _status("VmRSS")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_SPACE, hard))
    try:
        with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as folder:
            for number in range(inputs):
                kind = list(KINDS)[number % len(KINDS)]
                raw = mutant(kind, number // len(KINDS), files)
                started = time.perf_counter()
                try:
                    refusal = try_reading(raw, Path(folder) / "input.persona")
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    last = traceback.format_exception(error)[-3:]
                    crashes.append({"kind": kind, "number": number // len(KINDS), "error": last})
                    kinds[kind]["crashed"] += 1
                else:
                    kinds[kind]["refused" if refusal else "read"] += 1
                    refusals[refusal] += bool(refusal)
                slowest = max(slowest, (time.perf_counter() - started, kind, number // len(KINDS)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    del refusals[""]
    return {
        "inputs": inputs,
        "crashes": len(crashes),
        "crashed": crashes[:20],
        "kinds": {kind: dict(sorted(counts.items())) for kind, counts in kinds.items()},
        "refusals": dict(refusals.most_common()),
        "seed": SEED,
        "address_space_limit": ADDRESS_SPACE,
        "peak_memory_over_start": _status("VmHWM") - before,
        "slowest": {"seconds": round(slowest[0], 3), "kind": slowest[1], "number": slowest[2]},
    }


def _status(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(f"{field}:")).split()[1]) * 1024


def main() -> None:
    """Fuzz, then write the result."""
    from benchmarks.common import machine, write

    result = run(INPUTS)
    versions = {"safetensors": _version("safetensors"), "zstandard": zstandard.__version__, "numpy": np.__version__}
    result |= {"machine": machine(), "versions": versions, "command": "python -m benchmarks.fuzz_reader"}
    print(json.dumps({k: v for k, v in result.items() if k != "refusals"}, indent=1))
    print(write("fuzz_reader", result))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
