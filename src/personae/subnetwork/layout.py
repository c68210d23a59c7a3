"""The `.persona` file: what its header says and how its bytes are laid out (docs/format.md).

A safetensors container of uint8 payloads named "<persona>/<target>", or "/<target>" for what the personas
have in common there. The header's metadata holds one JSON text that describes every payload, compressed (as
plain text its names and figures would take a quarter of the file of a 0.2 % mask), and a digest of it. The
header is written here and not by the safetensors package, because its bytes must not depend on that
package's version.

A file in which nothing is shared is of version 1, which readers from before there was a version 2 read too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from personae.errors import ArtefactError, OptionError
from personae.subnetwork.artefact import check_persona_name, check_target_name
from personae.subnetwork.codec import LARGEST_TARGET, compressed, decompressed
from personae.subnetwork.mask import Mask
from personae.subnetwork.provenance import ModelIdentity, Provenance
from personae.subnetwork.sharing import Encoded

__all__ = ["ArtefactHeader", "PayloadEntry", "PersonaEntry"]

FORMAT = "persona"
ALONE, SHARED = "1", "2"  # format versions: each mask on its own, some of them as differences from a consensus
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format

# A description compresses some six times: its hashes do not compress. What claims to be far longer is a bomb.
_SMALL_DESCRIPTION = 1 << 20  # bytes that may be a bomb, since they do no harm
_LARGEST_RATIO = 32
_SHORT_DESCRIPTION = 1 << 14

_METADATA_KEYS = {"format", "format_version", "personae", "digest"}


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PayloadEntry(_Entry):
    """What the header says of one payload.

    Attributes:
        encoding: how a mask became bytes (codec).
        shape: (out, in) of the target.
        dropped: weights that the mask drops; with a base, the persona's mask and not the stored difference.
        length: bytes of the payload.
        blake2b: BLAKE2b-128 of the payload, hexadecimal.
        base: 'consensus' where the payload holds the difference from the file's consensus; None: the mask itself.
    """

    encoding: str
    shape: tuple[int, int]
    dropped: int = Field(ge=0)
    length: int = Field(ge=1)
    blake2b: str
    base: Literal["consensus"] | None = None


class PersonaEntry(_Entry):
    """One persona of the header; `payloads` maps target names to what is stored for them."""

    name: str
    description: str = ""
    system_prompt: str | None = None
    provenance: Provenance
    payloads: dict[str, PayloadEntry] = Field(min_length=1)


class ArtefactHeader(_Entry):
    """All that a `.persona` file says of itself; read by `inspect` without touching a payload.

    `consensus` maps target names to the mask that payloads with a base differ from.
    """

    model: ModelIdentity
    personas: list[PersonaEntry]
    consensus: dict[str, PayloadEntry] = Field(default_factory=dict)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the personas in their order."""
        return tuple(persona.name for persona in self.personas)

    def tensors(self) -> dict[str, PayloadEntry]:
        """Tensor name → payload, in the order in which payloads lie in the file (sorted by name)."""
        named = {tensor_name(CONSENSUS, target): payload for target, payload in self.consensus.items()}
        for persona in self.personas:
            named |= {tensor_name(persona.name, target): payload for target, payload in persona.payloads.items()}
        return dict(sorted(named.items()))

    def pruned(self) -> ArtefactHeader:
        """Without the consensus of targets that no persona refers to."""
        used = {t for persona in self.personas for t, payload in persona.payloads.items() if payload.base}
        return self.model_copy(update={"consensus": {t: p for t, p in self.consensus.items() if t in used}})


CONSENSUS = ""  # stands where a persona's name would; no persona can have it


def tensor_name(persona: str, target: str) -> str:
    """Name of a payload in the container; persona names hold no '/', so the first one separates."""
    return f"{persona}/{target}"


def content_hash(content: bytes) -> str:
    """BLAKE2b with a 16-byte digest, as 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def describe(mask: Mask, encoded: Encoded) -> PayloadEntry:
    """The header's entry for a mask and what is stored for it."""
    return PayloadEntry(
        encoding=encoded.encoding,
        shape=mask.shape,
        dropped=mask.dropped,
        length=len(encoded.payload),
        blake2b=content_hash(encoded.payload),
        base="consensus" if encoded.is_difference else None,
    )


# --------------------------------------------------------------------- writing


def header_bytes(header: ArtefactHeader) -> bytes:
    """Everything in front of the payloads: 8 bytes of length, JSON, and spaces up to a multiple of 8.

    Raises:
        OptionError: something in it has no JSON form, or it is larger than safetensors permits.
    """
    with storable():
        text = _json(_plain(header)).encode()
        # What cannot be read back must not be written: readers of JSON allow less nesting than writers.
        ArtefactHeader.model_validate_json(text)
    # Of the file of a 0.2 % mask a long description is some per cent, so it gets more time; a short one gains nothing.
    frame = compressed(text, level=15) if len(text) > _SHORT_DESCRIPTION else compressed(text)
    if len(text) > max(_SMALL_DESCRIPTION, _LARGEST_RATIO * len(frame)):
        raise OptionError(
            f"the description of {len(text) / 1e6:.0f} MB compresses to {len(frame) / 1e6:.2f} MB, which readers would "
            "take for a bomb: leave out of metadata, provenance or system prompt what repeats itself so often"
        )
    description = base64.b64encode(frame).decode("ascii")
    metadata = {
        "digest": content_hash(description.encode()),
        "format": FORMAT,
        "format_version": SHARED if header.consensus else ALONE,
        "personae": description,
    }
    tensors: dict[str, JsonValue] = {}
    offset = 0
    for name, payload in header.tensors().items():
        end = offset + payload.length
        tensors[name] = {"data_offsets": [offset, end], "dtype": "U8", "shape": [payload.length]}
        offset = end
    raw = _json({"__metadata__": metadata, **tensors}).encode()
    raw += b" " * (-len(raw) % 8)
    largest = max(len(raw), len(text))
    if largest > LARGEST_HEADER:
        raise OptionError(
            f"{len(header.personas)} personas over {len(header.model.targets)} targets need a header of "
            f"{largest / 1e6:.0f} MB, more than the {LARGEST_HEADER / 1e6:.0f} MB of a safetensors file: "
            "save them in several files"
        )
    return struct.pack("<Q", len(raw)) + raw


def _plain(header: ArtefactHeader) -> dict[str, Any]:
    """The description as JSON; what only version 2 knows is left out where it says nothing."""
    described = header.model_dump(mode="json")
    if not header.consensus:
        del described["consensus"]
    for payloads in (described.get("consensus", {}), *(persona["payloads"] for persona in described["personas"])):
        for payload in payloads.values():
            if payload["base"] is None:
                del payload["base"]
    return described


@contextmanager
def storable() -> Iterator[None]:
    """Turn what pydantic and json say of a value without a JSON form into an OptionError."""
    try:
        yield
    except (ValueError, RecursionError) as error:  # ValidationError and UnicodeEncodeError are ValueErrors
        raise OptionError(
            f"a description, provenance or metadata has no JSON form: {error}\n"
            "Use finite numbers, plain text and flat structures"
        ) from error


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


# --------------------------------------------------------------------- reading


def parse_header(metadata: Mapping[str, str] | None, path: str) -> ArtefactHeader:
    """The header of a container's metadata, with its digest, names and shapes checked.

    Raises:
        ArtefactError: not a `.persona` file, of another format version, altered, or contradicting itself.
    """
    if not metadata or metadata.get("format") != FORMAT:
        raise ArtefactError(f"{path} is a safetensors file but no .persona file: give a file that personae has written")
    version = metadata.get("format_version")
    if version not in (ALONE, SHARED):
        raise ArtefactError(
            f"{path} has format version {version!r}, this personae reads {ALONE!r} and {SHARED!r}: "
            "update personae, or fetch the file again if it should be readable"
        )
    description = metadata.get("personae", "").encode()
    if set(metadata) != _METADATA_KEYS or metadata.get("digest") != content_hash(description):
        raise altered(path, "its description does not match its digest")
    try:
        frame = base64.b64decode(description, validate=True)
        longest = min(LARGEST_HEADER, max(_SMALL_DESCRIPTION, _LARGEST_RATIO * len(frame)))
        header = ArtefactHeader.model_validate_json(decompressed(frame, longest))
        _check(header, version)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise altered(path, f"its description is not as the format says at '{where}': {first['msg']}") from error
    except (OptionError, ArtefactError, binascii.Error) as error:
        raise altered(path, str(error)) from error
    return header


def _check(header: ArtefactHeader, version: str) -> None:
    if len(set(header.names)) != len(header.names):
        raise OptionError("it names a persona twice")
    if (version == SHARED) != bool(header.consensus):
        raise OptionError(f"it has {len(header.consensus)} payloads in common, which version {version} has not")
    for target, payload in header.consensus.items():
        _check_payload(header, target, payload, "the consensus")
        if payload.base:
            raise OptionError(f"the consensus of {target} has a base itself")
    for persona in header.personas:
        check_persona_name(persona.name)
        for target, payload in persona.payloads.items():
            _check_payload(header, target, payload, f"'{persona.name}'")
            if payload.base and target not in header.consensus:
                raise OptionError(
                    f"the mask of {target} in '{persona.name}' differs from a consensus that is not there"
                )
    with storable():  # a reader of JSON takes NaN, and 1e999 for infinity; neither could be written again
        _json([header.metadata, *((p.provenance.parameters, p.provenance.measured) for p in header.personas)])


def _check_payload(header: ArtefactHeader, target: str, payload: PayloadEntry, owner: str) -> None:
    check_target_name(target)
    size = payload.shape[0] * payload.shape[1]
    if payload.shape != header.model.targets.get(target) or min(payload.shape) < 1:
        raise OptionError(f"the mask of {target} in {owner} has not the shape of the target")
    if size > LARGEST_TARGET:
        raise OptionError(f"the mask of {target} in {owner} is of more weights than any model has")
    if payload.dropped > size:
        raise OptionError(f"the mask of {target} in {owner} drops more than its {size} weights")


def altered(path: str, reason: str) -> ArtefactError:
    """The error for a file that was valid once."""
    return ArtefactError(f"{path} is damaged or was altered: {reason}. Fetch or make the file again")
