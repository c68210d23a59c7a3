"""Saving and loading `.persona` files.

Writing goes through a temporary file beside the target, so a full disk, a read-only folder, a kill or
Ctrl-C leaves the old file as it was. Reading maps the file, verifies the description by its digest and each
payload by its hash before it is decoded, and decodes only what was asked for. The hashes protect against
accidents, not against a forger; against one, every size is checked before memory is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from personae.errors import ArtefactError, MaskMismatchError
from personae.files import replacing
from personae.subnetwork import layout
from personae.subnetwork.artefact import Artefact, Subnetwork, check_fits, check_free, unknown_persona
from personae.subnetwork.codec import decode
from personae.subnetwork.layout import ArtefactHeader, PayloadEntry, PersonaEntry
from personae.subnetwork.mask import Mask, differing
from personae.subnetwork.provenance import ModelIdentity
from personae.subnetwork.sharing import encode_against, encode_together

__all__ = ["add_persona", "inspect", "load", "remove_persona", "save"]

PathName = str | os.PathLike[str]
Payloads = dict[str, bytes]  # tensor name → payload

_DECODING = 8  # bit maps of a target that decoding its mask takes at the most


def save(artefact: Artefact, path: PathName, *, overwrite: bool = True) -> None:
    """Write an artefact to one file, atomically. Equal artefacts give equal bytes.

    Where masks of several personas are alike, what they have in common is stored once, if that makes the file smaller.

    Raises:
        ArtefactError: the file exists and `overwrite` is False, or it cannot be written; then a file that
            was there is unchanged.
        OptionError: something in the artefact has no JSON form, or there are too many targets for one file.
    """
    if not overwrite and os.path.lexists(path):
        raise ArtefactError(f"{os.fspath(path)} exists: choose another name, or allow overwriting it")
    subnetworks = list(artefact.personas.values())
    consensus: dict[str, PayloadEntry] = {}
    described: dict[str, dict[str, PayloadEntry]] = {subnetwork.name: {} for subnetwork in subnetworks}
    payloads = Payloads()
    for target in sorted({target for subnetwork in subnetworks for target in subnetwork.masks}):
        owners = [subnetwork for subnetwork in subnetworks if target in subnetwork.masks]
        masks = [owner.masks[target] for owner in owners]
        common, stored = encode_together(masks, cost=_cost_of_sharing(target, len(masks)))
        if common:
            consensus[target] = layout.describe(*common)
            payloads[layout.tensor_name(layout.CONSENSUS, target)] = common[1].payload
        for owner, mask, encoded in zip(owners, masks, stored, strict=True):
            described[owner.name][target] = layout.describe(mask, encoded)
            payloads[layout.tensor_name(owner.name, target)] = encoded.payload
    with layout.storable():
        header = ArtefactHeader(
            model=artefact.model,
            personas=[_entry(subnetwork, described[subnetwork.name]) for subnetwork in subnetworks],
            consensus=consensus,
            metadata=dict(artefact.metadata),
        )
    _write(header, payloads.__getitem__, path)


def load(path: PathName, *, personas: Iterable[str] | None = None) -> Artefact:
    """Read an artefact, or only the named personas of it (in the order of the file).

    Raises:
        ArtefactError: the file is missing, truncated, altered, foreign or of a newer format, or its masks are larger
            than the machine's memory.
        UnknownPersonaError: a name is not in the file.
    """
    with _opened(path) as (header, container):
        wanted = set(header.names) if personas is None else set(personas)
        for name in sorted(wanted - set(header.names)):
            raise unknown_persona(name, header.names)
        chosen = [entry for entry in header.personas if entry.name in wanted]
        _check_memory(header, chosen, os.fspath(path))
        reader = _Reader(header, container, os.fspath(path))
        subnetworks = {entry.name: reader.subnetwork(entry) for entry in chosen}
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

    Its masks are stored as differences from the consensus that the file has, where that is shorter. A consensus comes
    into being only in `save`: `save(load(path), path)` finds anew what all personas have in common.
    A persona that is overwritten keeps its place. Of two processes that add at once, the last one wins.

    Raises:
        OptionError: the name is taken and `overwrite` is False.
        MaskMismatchError: a mask does not fit the file's model, or `model` is another one (fingerprint).
        ArtefactError: the file cannot be read or written; then it is unchanged.
    """
    with _opened(path) as (header, container):
        if model is not None and model.fingerprint != header.model.fingerprint:
            raise MaskMismatchError(
                f"{os.fspath(path)} belongs to {header.model.id} ({header.model.fingerprint}), the persona "
                f"'{subnetwork.name}' to {model.id} ({model.fingerprint}): save it in a file of its own"
            )
        check_free(subnetwork.name, header.names, overwrite=overwrite)
        check_fits(subnetwork, header.model)
        reader = _Reader(header, container, os.fspath(path))
        described: dict[str, PayloadEntry] = {}
        fresh = Payloads()
        for target, mask in subnetwork.masks.items():
            encoded = encode_against(mask, reader.read_consensus(target) if target in header.consensus else None)
            described[target] = layout.describe(mask, encoded)
            fresh[layout.tensor_name(subnetwork.name, target)] = encoded.payload
        entry = _entry(subnetwork, described)
        entries = [entry if old.name == entry.name else old for old in header.personas]
        if subnetwork.name not in header.names:
            entries.append(entry)
        changed = header.model_copy(update={"personas": entries}).pruned()
        _write(changed, lambda name: fresh[name] if name in fresh else reader.payload(name), path)


def remove_persona(path: PathName, name: str) -> None:
    """Remove a persona from a file; the other payloads are copied byte for byte.

    A consensus stays as long as another persona refers to it, and with it what the removed persona had in common with
    the others; `save(load(path), path)` writes a file that never knew it.

    Raises:
        UnknownPersonaError: no such persona.
        ArtefactError: the file cannot be read or written; then it is unchanged.
    """
    with _opened(path) as (header, container):
        if name not in header.names:
            raise unknown_persona(name, header.names)
        entries = [entry for entry in header.personas if entry.name != name]
        changed = header.model_copy(update={"personas": entries}).pruned()
        _write(changed, _Reader(header, container, os.fspath(path)).payload, path)


def _entry(subnetwork: Subnetwork, payloads: Mapping[str, PayloadEntry]) -> PersonaEntry:
    with layout.storable():
        return PersonaEntry(
            name=subnetwork.name,
            description=subnetwork.description,
            system_prompt=subnetwork.system_prompt,
            provenance=subnetwork.provenance,
            payloads=dict(payloads),
        )


def _cost_of_sharing(target: str, personas: int) -> int:
    """More bytes than one more payload and the references to it ever take in container and description."""
    return 512 + 4 * len(target.encode("utf-8", "replace")) + 32 * personas


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
    except MemoryError as error:
        raise ArtefactError(
            f"{name} needs more memory than there is: load fewer personas at once, or distrust the file"
        ) from error


def _check_tensors(header: ArtefactHeader, container: _Container, path: str) -> None:
    """The container must hold exactly the payloads that the description lists, in its order."""
    tensors = header.tensors()
    if container.offset_keys() != list(tensors):
        raise layout.altered(path, "its payloads are not those of its description")
    for name, payload in tensors.items():
        tensor = container.get_slice(name)
        if tensor.get_dtype() != "U8" or tensor.get_shape() != [payload.length]:
            raise layout.altered(path, f"the payload {name} has not the length of its description")


class _Reader:
    """Payloads and masks of a file that is open. A consensus is decoded once, when the first mask needs it."""

    def __init__(self, header: ArtefactHeader, container: _Container, path: str) -> None:
        self._header = header
        self._tensors = header.tensors()
        self._container = container
        self._path = path
        self._consensus: dict[str, Mask] = {}

    def payload(self, name: str) -> bytes:
        """One payload as it is, verified, so that damage is never copied under a fresh header."""
        content = self._container.get_tensor(name).tobytes()
        if layout.content_hash(content) != self._tensors[name].blake2b:
            raise layout.altered(self._path, f"the payload {name} does not match its hash")
        return content

    def subnetwork(self, persona: PersonaEntry) -> Subnetwork:
        """The masks of one persona; of the others nothing is read."""
        masks: dict[str, Mask] = {}
        for target, payload in persona.payloads.items():
            mask = self._decoded(persona.name, target, payload)
            if payload.base:
                if target not in self._consensus:
                    self._consensus[target] = self.read_consensus(target)
                mask = differing(mask, self._consensus[target])
            masks[target] = self._counted(mask, payload, f"the mask of {target} in '{persona.name}'")
        return Subnetwork(persona.name, masks, persona.provenance, persona.description, persona.system_prompt)

    def read_consensus(self, target: str) -> Mask:
        """What personas have in common on a target; not kept."""
        payload = self._header.consensus[target]
        return self._counted(self._decoded(layout.CONSENSUS, target, payload), payload, f"the consensus of {target}")

    def _decoded(self, persona: str, target: str, payload: PayloadEntry) -> Mask:
        content = self.payload(layout.tensor_name(persona, target))
        try:
            return decode(payload.encoding, content, payload.shape)
        except ArtefactError as error:
            owner = f"persona '{persona}'" if persona else "consensus"
            raise ArtefactError(f"{self._path}: {owner}, target {target}: {error}") from error

    def _counted(self, mask: Mask, payload: PayloadEntry, what: str) -> Mask:
        if mask.dropped != payload.dropped:
            raise layout.altered(self._path, f"{what} has not its number of weights")
        return mask


def _check_memory(header: ArtefactHeader, personas: Sequence[PersonaEntry], path: str) -> None:
    """Refuse, before anything is decoded, masks that this machine cannot hold.

    They take what `Mask` holds for the counts that the header gives; to decode one takes a few bit maps more.
    """
    needed = largest = 0
    for payloads in (header.consensus, *(persona.payloads for persona in personas)):
        for payload in payloads.values():
            bit_map = (payload.shape[0] * payload.shape[1] + 7) // 8
            needed += min(bit_map, 8 * payload.dropped)
            largest = max(largest, bit_map)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed + _DECODING * largest > memory:
        raise ArtefactError(
            f"{path} describes masks of {needed / 1e9:.1f} GB, the largest a bit map of {largest / 1e9:.1f} GB, "
            f"which do not fit in the {memory / 1e9:.1f} GB of this machine: load fewer personas at once, or distrust "
            "the file"
        )


# --------------------------------------------------------------------- writing


def _write(header: ArtefactHeader, payload: Callable[[str], bytes], path: PathName) -> None:
    """Put a file of this header in the place of `path`: wholly, or not at all.

    payload: gives the payload of a name; asked for one after the other, so that a large file is copied without being
    held in memory. Until the end it may read from the file that is replaced.
    """
    front = layout.header_bytes(header)
    try:
        with replacing(path, durable=True) as temporary, open(temporary, "xb") as file:
            file.write(front)
            file.writelines(payload(name) for name in header.tensors())
    except OSError as error:
        raise ArtefactError(
            f"cannot write {os.fspath(path)}: {error.strerror or error}. Nothing was changed; "
            "choose a folder that exists, is writable and has space"
        ) from error
