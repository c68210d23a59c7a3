"""The `.persona` file: what its header says and how its bytes are laid out (docs/format.md).

A safetensors container of uint8 payloads named "<persona>/<target>". The header's metadata holds one JSON
text that describes every payload, compressed (as plain text its names and figures would take a quarter of
the file of a 0.2 % mask), and a digest of it. The header is written here and not by the safetensors
package, because its bytes must not depend on that package's version.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from personae.errors import ArtefactError, OptionError
from personae.subnetwork.artefact import check_persona_name, check_target_name
from personae.subnetwork.codec import compressed, decompressed
from personae.subnetwork.mask import Mask
from personae.subnetwork.provenance import ModelIdentity, Provenance

__all__ = ["ArtefactHeader", "PayloadEntry", "PersonaEntry"]

FORMAT = "persona"
FORMAT_VERSION = "1"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format

_METADATA_KEYS = {"format", "format_version", "personae", "digest"}


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PayloadEntry(_Entry):
    """What the header says of one payload: encoding, (out, in), dropped weights, bytes, BLAKE2b-128 hex."""

    encoding: str
    shape: tuple[int, int]
    dropped: int = Field(ge=0)
    length: int = Field(ge=1)
    blake2b: str


class PersonaEntry(_Entry):
    """One persona of the header; `payloads` maps target names to what is stored for them."""

    name: str
    description: str = ""
    system_prompt: str | None = None
    provenance: Provenance
    payloads: dict[str, PayloadEntry] = Field(min_length=1)


class ArtefactHeader(_Entry):
    """All that a `.persona` file says of itself; read by `inspect` without touching a payload."""

    model: ModelIdentity
    personas: list[PersonaEntry]
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the personas in their order."""
        return tuple(persona.name for persona in self.personas)

    def lengths(self) -> dict[str, int]:
        """Tensor name → bytes, in the order in which payloads lie in the file (sorted by name)."""
        named = {
            tensor_name(persona.name, target): payload.length
            for persona in self.personas
            for target, payload in persona.payloads.items()
        }
        return dict(sorted(named.items()))


def tensor_name(persona: str, target: str) -> str:
    """Name of a payload in the container; persona names hold no '/', so the first one separates."""
    return f"{persona}/{target}"


def content_hash(content: bytes) -> str:
    """BLAKE2b with a 16-byte digest, as 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def describe(mask: Mask, encoding: str, payload: bytes) -> PayloadEntry:
    """The header's entry for a mask and its payload."""
    return PayloadEntry(
        encoding=encoding,
        shape=mask.shape,
        dropped=mask.dropped,
        length=len(payload),
        blake2b=content_hash(payload),
    )


# --------------------------------------------------------------------- writing


def header_bytes(header: ArtefactHeader) -> bytes:
    """Everything in front of the payloads: 8 bytes of length, JSON, and spaces up to a multiple of 8.

    Raises:
        OptionError: something in it has no JSON form, or it is larger than safetensors permits.
    """
    with storable():
        text = _json(header.model_dump(mode="json"))
        # What cannot be read back must not be written: readers of JSON allow less nesting than writers.
        ArtefactHeader.model_validate_json(text)
        description = base64.b64encode(compressed(text.encode())).decode("ascii")
    metadata = {
        "digest": content_hash(description.encode()),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "personae": description,
    }
    tensors: dict[str, JsonValue] = {}
    offset = 0
    for name, length in header.lengths().items():
        tensors[name] = {"data_offsets": [offset, offset + length], "dtype": "U8", "shape": [length]}
        offset += length
    raw = _json({"__metadata__": metadata, **tensors}).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > LARGEST_HEADER:
        raise OptionError(
            f"{len(header.personas)} personas over {len(header.model.targets)} targets need a header of "
            f"{len(raw) / 1e6:.0f} MB, more than the {LARGEST_HEADER / 1e6:.0f} MB of a safetensors file: "
            "save them in several files"
        )
    return struct.pack("<Q", len(raw)) + raw


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
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format version {version!r}, this personae reads {FORMAT_VERSION!r}: "
            "update personae, or fetch the file again if it should be readable"
        )
    description = metadata.get("personae", "").encode()
    if set(metadata) != _METADATA_KEYS or metadata.get("digest") != content_hash(description):
        raise altered(path, "its description does not match its digest")
    try:
        text = decompressed(base64.b64decode(description, validate=True), LARGEST_HEADER)
        header = ArtefactHeader.model_validate_json(text)
        _check(header)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise altered(path, f"its description is not as the format says at '{where}': {first['msg']}") from error
    except (OptionError, ArtefactError, binascii.Error) as error:
        raise altered(path, str(error)) from error
    return header


def _check(header: ArtefactHeader) -> None:
    if len(set(header.names)) != len(header.names):
        raise OptionError("it names a persona twice")
    for persona in header.personas:
        check_persona_name(persona.name)
        for target, payload in persona.payloads.items():
            check_target_name(target)
            if payload.shape != header.model.targets.get(target) or min(payload.shape) < 1:
                raise OptionError(f"the mask of {target} in '{persona.name}' has not the shape of the target")


def altered(path: str, reason: str) -> ArtefactError:
    """The error for a file that was valid once."""
    return ArtefactError(f"{path} is damaged or was altered: {reason}. Fetch or make the file again")
