"""Saving and loading `.persona` files.

Writing goes through a temporary file beside the target, so a full disk, a read-only folder, a kill or
Ctrl-C leaves the old file as it was. Reading verifies the description by its digest and each payload by its
hash before it is decoded. The hashes protect against accidents, not against a forger.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from personae.errors import ArtefactError, MaskMismatchError
from personae.files import replacing
from personae.subnetwork import layout
from personae.subnetwork.artefact import Artefact, Subnetwork, check_fits, check_free, unknown_persona
from personae.subnetwork.codec import decode, encode
from personae.subnetwork.layout import ArtefactHeader, PayloadEntry, PersonaEntry
from personae.subnetwork.mask import Mask
from personae.subnetwork.provenance import ModelIdentity

__all__ = ["add_persona", "inspect", "load", "remove_persona", "save"]

PathName = str | os.PathLike[str]
Payloads = dict[str, bytes]  # tensor name → payload


def save(artefact: Artefact, path: PathName, *, overwrite: bool = True) -> None:
    """Write an artefact to one file, atomically. Equal artefacts give equal bytes.

    Raises:
        ArtefactError: the file exists and `overwrite` is False, or it cannot be written; then a file that
            was there is unchanged.
        OptionError: something in the artefact has no JSON form, or there are too many targets for one file.
    """
    if not overwrite and os.path.lexists(path):
        raise ArtefactError(f"{os.fspath(path)} exists: choose another name, or allow overwriting it")
    entries, payloads = [], Payloads()
    for subnetwork in artefact.personas.values():
        entry, encoded = _encoded(subnetwork)
        entries.append(entry)
        payloads |= encoded
    with layout.storable():
        header = ArtefactHeader(model=artefact.model, personas=entries, metadata=dict(artefact.metadata))
    _write(header, payloads, path)


def load(path: PathName, *, personas: Iterable[str] | None = None) -> Artefact:
    """Read an artefact, or only the named personas of it (in the order of the file).

    Raises:
        ArtefactError: the file is missing, truncated, altered, foreign or of a newer format.
        UnknownPersonaError: a name is not in the file.
    """
    with _opened(path) as (header, container):
        wanted = set(header.names) if personas is None else set(personas)
        for name in sorted(wanted - set(header.names)):
            raise unknown_persona(name, header.names)
        chosen = [entry for entry in header.personas if entry.name in wanted]
        subnetworks = {entry.name: _decoded(entry, container, os.fspath(path)) for entry in chosen}
    return Artefact(header.model, subnetworks, header.metadata)


def inspect(path: PathName) -> ArtefactHeader:
    """Read and verify what a file says of itself, without reading a payload.

    Raises:
        ArtefactError: the file is missing, truncated, foreign, of a newer format, or its header is altered.
    """
    with _opened(path) as (header, _):
        return header


def add_persona(
    path: PathName, subnetwork: Subnetwork, *, overwrite: bool = False, model: ModelIdentity | None = None
) -> None:
    """Add a persona to a file: the other payloads are copied byte for byte into a new file that replaces it.

    A persona that is overwritten keeps its place. Of two processes that add at once, the last one wins.

    Raises:
        OptionError: the name is taken and `overwrite` is False.
        MaskMismatchError: a mask does not fit the file's model, or `model` is another one (fingerprint).
        ArtefactError: the file cannot be read or written; then it is unchanged.
    """
    header, payloads = _read_payloads(path)
    if model is not None and model.fingerprint != header.model.fingerprint:
        raise MaskMismatchError(
            f"{os.fspath(path)} belongs to {header.model.id} ({header.model.fingerprint}), the persona "
            f"'{subnetwork.name}' to {model.id} ({model.fingerprint}): save it in a file of its own"
        )
    check_free(subnetwork.name, header.names, overwrite=overwrite)
    check_fits(subnetwork, header.model)
    entry, encoded = _encoded(subnetwork)
    entries = [entry if old.name == entry.name else old for old in header.personas]
    if subnetwork.name not in header.names:
        entries.append(entry)
    _write(header.model_copy(update={"personas": entries}), payloads | encoded, path)


def remove_persona(path: PathName, name: str) -> None:
    """Remove a persona from a file; the other payloads are copied byte for byte.

    Raises:
        UnknownPersonaError: no such persona.
        ArtefactError: the file cannot be read or written; then it is unchanged.
    """
    header, payloads = _read_payloads(path)
    if name not in header.names:
        raise unknown_persona(name, header.names)
    entries = [entry for entry in header.personas if entry.name != name]
    _write(header.model_copy(update={"personas": entries}), payloads, path)


# ------------------------------------------------------------ masks ↔ payloads


def _encoded(subnetwork: Subnetwork) -> tuple[PersonaEntry, Payloads]:
    entries: dict[str, PayloadEntry] = {}
    payloads = Payloads()
    for target, mask in subnetwork.masks.items():
        encoding, payload = encode(mask)
        entries[target] = layout.describe(mask, encoding, payload)
        payloads[layout.tensor_name(subnetwork.name, target)] = payload
    with layout.storable():
        entry = PersonaEntry(
            name=subnetwork.name,
            description=subnetwork.description,
            system_prompt=subnetwork.system_prompt,
            provenance=subnetwork.provenance,
            payloads=entries,
        )
    return entry, payloads


def _decoded(entry: PersonaEntry, container: _Container, path: str) -> Subnetwork:
    masks: dict[str, Mask] = {}
    for target, payload in entry.payloads.items():
        content = _payload(container, layout.tensor_name(entry.name, target), payload, path)
        try:
            masks[target] = decode(payload.encoding, content, payload.shape)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: persona '{entry.name}', target {target}: {error}") from error
        if masks[target].dropped != payload.dropped:
            raise layout.altered(path, f"the mask of {target} in '{entry.name}' has not its number of weights")
    return Subnetwork(entry.name, masks, entry.provenance, entry.description, entry.system_prompt)


# --------------------------------------------------------------------- reading


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Container(Protocol):
    """What is used of a safetensors file that is open."""

    def metadata(self) -> dict[str, str] | None: ...
    def offset_keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> NDArray[np.uint8]: ...


# safetensors has no type annotations.
_safe_open = cast("Callable[..., AbstractContextManager[_Container]]", safe_open)


@contextmanager
def _opened(path: PathName) -> Iterator[tuple[ArtefactHeader, _Container]]:
    """The verified header and the memory-mapped container of a file."""
    name = os.fspath(path)
    try:
        with _safe_open(name, framework="numpy") as container:
            header = layout.parse_header(container.metadata(), name)
            _check_tensors(header, container, name)
            yield header, container
    except SafetensorError as error:
        raise ArtefactError(
            f"{name} is not a .persona file, or it is truncated or damaged ({error}): fetch or make it again"
        ) from error
    except OSError as error:
        raise ArtefactError(
            f"cannot read {name}: {error.strerror or error}. Give the path of a .persona file"
        ) from error


def _check_tensors(header: ArtefactHeader, container: _Container, path: str) -> None:
    """The container must hold exactly the payloads that the description lists, in its order."""
    lengths = header.lengths()
    if container.offset_keys() != list(lengths):
        raise layout.altered(path, "its payloads are not those of its description")
    for name, length in lengths.items():
        tensor = container.get_slice(name)
        if tensor.get_dtype() != "U8" or tensor.get_shape() != [length]:
            raise layout.altered(path, f"the payload {name} has not the length of its description")


def _payload(container: _Container, name: str, entry: PayloadEntry, path: str) -> bytes:
    content = container.get_tensor(name).tobytes()
    if layout.content_hash(content) != entry.blake2b:
        raise layout.altered(path, f"the payload {name} does not match its hash")
    return content


def _read_payloads(path: PathName) -> tuple[ArtefactHeader, Payloads]:
    """All payloads as they are, verified, so that damage is never copied under a fresh header."""
    payloads = Payloads()
    with _opened(path) as (header, container):
        for entry in header.personas:
            for target, payload in entry.payloads.items():
                name = layout.tensor_name(entry.name, target)
                payloads[name] = _payload(container, name, payload, os.fspath(path))
    return header, payloads


# --------------------------------------------------------------------- writing


def _write(header: ArtefactHeader, payloads: Payloads, path: PathName) -> None:
    front = layout.header_bytes(header)
    _replace(path, [front, *(payloads[name] for name in header.lengths())])


def _replace(path: PathName, chunks: Sequence[bytes]) -> None:
    """Put a file of these chunks in the place of `path`: wholly, or not at all."""
    try:
        with replacing(path, durable=True) as temporary, open(temporary, "xb") as file:
            file.writelines(chunks)
    except OSError as error:
        raise ArtefactError(
            f"cannot write {os.fspath(path)}: {error.strerror or error}. Nothing was changed; "
            "choose a folder that exists, is writable and has space"
        ) from error
