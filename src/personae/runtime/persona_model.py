"""PersonaModel: one resident model that wears personas."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import MaskMismatchError, ModelError, OptionError, PersonaInUseError
from personae.models import Target, context_length, find_targets, fingerprint
from personae.runtime.blend import check_strengths, merge, single_gate
from personae.runtime.generation import Message, Options, TextStream, fitted, prompt_tokens, write
from personae.runtime.guards import guard, is_guarded, unguard
from personae.runtime.switch import Patch, Undo, check_masks, patch, put_on, storage_positions, take_off
from personae.runtime.turn import Turn
from personae.runtime.wardrobe import Source, Wardrobe, read_source
from personae.subnetwork import ModelIdentity

__all__ = ["PersonaModel"]


class PersonaModel:
    """A causal language model that puts personas on and takes them off in place, bit for bit.

    Wearing a persona multiplies the weights it drops by 1 - strength; taking it off writes the saved bits
    back. `model` is the same object all the while, so what else uses it sees the persona too. While one
    is worn, `model.state_dict()`, `.save_pretrained()`, `.to()`, `copy.deepcopy(model)` and pickling are
    refused with `PersonaInUseError`; `to` and `save_pretrained` of this class work at any time.

    Threads: one at a time. `set_persona`, `disable_persona`, `generate` and `chat` of other threads wait
    while an answer is generated and for the length of a `with actor.persona(…)` block, which belongs to the
    thread that entered it: do not wait inside the block for another thread that uses the model, and do not
    `await` in it. The thread whose own stream is still being written gets `PersonaInUseError`.

    model, tokenizer: of `load_model`; without a tokenizer there is no `chat`. max_personas: keep at most so
    many; adding more evicts those used least recently and not worn. targets: of `find_targets(model)`, where
    the caller has them already. Do not train or replace the weights meanwhile; make a new one after that.

    Errors: `PersonaInUseError` when another PersonaModel wears a persona on this model; `ModelError` when it
    has no targets; `OptionError` for `max_personas` below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_personas: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> None:
        _check_unworn(model)
        self.model, self.tokenizer = model, tokenizer
        self._wardrobe = Wardrobe(max_personas)
        self._targets = _by_name(find_targets(model) if targets is None else targets)
        self._fingerprints: dict[frozenset[str], str] = {}  # of the base weights, by the targets it covers
        self._worn: dict[str, float] = {}
        self._patches: list[Patch] = []  # of what is worn, to put it on again when a switch fails
        self._undo = Undo()
        self._to_restore: list[dict[str, float]] = []  # what open `persona()` blocks will put back
        self._turn = Turn()

    # ------------------------------------------------------ personas held

    @property
    def personas(self) -> tuple[str, ...]:
        """Names of the personas that can be worn, in the order in which they were added."""
        return self._wardrobe.names

    def memory(self) -> dict[str, int]:
        """Bytes that the masks of each persona hold."""
        return self._wardrobe.memory()

    def add_personas(
        self, source: Source, *, names: Sequence[str] | None = None, allow_other_weights: bool = False
    ) -> tuple[str, ...]:
        """Add the personas of a `.persona` file, an artefact or one subnetwork; the names that were added.

        names: only these of the source. allow_other_weights: accept masks made for a model with the same
        names and shapes but other weights, with a warning. A bare subnetwork names no model, so only its
        names and shapes are checked. What is worn does not change.

        Errors, after which nothing is added: `MaskMismatchError` when a mask's target, its shape or the
        weights are another model's; `OptionError` for a name that is taken or more personas than
        `max_personas`; `UnknownPersonaError` for a name not in the source; `ArtefactError` for a file that
        cannot be read; `PersonaInUseError` when all that could be evicted is worn.
        """
        chosen, identity = read_source(source, names)
        added = tuple(subnetwork.name for subnetwork in chosen)
        with self._turn.held("add_personas()"):
            self._wardrobe.check_free(added)
            for subnetwork in chosen:
                check_masks(self._targets, subnetwork.masks, f"persona {subnetwork.name!r}")
            if identity is not None:
                self._check_identity(identity, allow_other_weights)
            self._wardrobe.add(chosen, self._needed())
        return added

    def remove_persona(self, name: str) -> None:
        """Forget a persona. Errors: `UnknownPersonaError`; `PersonaInUseError` while it is worn."""
        with self._turn.held("remove_persona()"):
            self._wardrobe.check_known([name])
            if name in self._needed():
                raise PersonaInUseError(f"persona {name!r} is worn, or an open persona() block will put it on again.")
            self._wardrobe.remove(name)

    # ------------------------------------------------------------ wearing

    @property
    def active(self) -> dict[str, float]:
        """Name and strength of what is worn; empty for the base model."""
        return dict(self._worn)

    def set_persona(self, persona: str | Mapping[str, float], strength: float = 1.0) -> None:
        """Wear one persona, or a blend {name: strength}, instead of what is worn.

        Strengths are 0 (nothing) to 1 (weights dropped); above 1 (their sign turned) for one persona alone.

        Errors, after which what was worn is worn still: `UnknownPersonaError`; `OptionError` for a strength
        out of range; `PersonaInUseError` while an answer is generated for this thread.
        """
        with self._turn.held("set_persona()"):
            self._wear(self._asked(persona, strength))

    def disable_persona(self) -> None:
        """The base weights, bit for bit."""
        with self._turn.held("disable_persona()"):
            self._wear({})

    @contextlib.contextmanager
    def persona(self, persona: str | Mapping[str, float], strength: float = 1.0) -> Iterator[Self]:
        """Wear a persona for a block and put back what was worn before it; blocks nest.

        Other threads wait for the end of the block. A stream that is still being written at the end of the
        block is waited for. Errors as `set_persona`.
        """
        self._turn.acquire("persona()")
        try:
            before = self._worn
            self._wear(self._asked(persona, strength))
            self._to_restore.append(before)
            try:
                yield self
            finally:
                try:
                    self._turn.wait_for_generation()
                finally:
                    self._to_restore.remove(before)
                    self._wear(before)
        finally:
            self._turn.release()

    # --------------------------------------------------------- generation

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """`model.generate(…)` under what is worn; nobody can switch meanwhile.

        Errors: `OptionError` for `past_key_values`: those of another persona would be silently wrong.
        """
        if options.get("past_key_values") is not None:
            raise OptionError(
                "past_key_values is refused: a cache may hold another persona's keys and values. Give the whole prompt."
            )
        with self._turn.generating("generate()"):
            return self.model.generate(*arguments, **options)  # type: ignore[operator]

    def chat(
        self,
        message: str | Sequence[Message],
        *,
        system: str | None = None,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> str:
        """The answer to a message, or to a list of messages {'role', 'content'} that ends with the user's.

        Through the model's chat template; white space at both ends is removed. temperature 0 takes the
        likeliest token each time; else the same seed gives the same text. stop: strings that end the answer.
        A prompt too long for the context is cut from the left, with a warning.

        Errors: `OptionError` for options out of range or no tokenizer; `DataError` for broken messages.
        """
        options = Options.of(max_new_tokens, temperature, top_p, seed, stop)
        tokenizer, tokens = self._prompt(message, system, options)
        pieces: list[str] = []
        with self._turn.generating("chat()"):
            write(self.model, tokenizer, tokens, options, pieces.append, threading.Event())
        return "".join(pieces).strip()

    def stream_chat(
        self,
        message: str | Sequence[Message],
        *,
        system: str | None = None,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> TextStream:
        """`chat`, piece by piece: generation starts at once, under what is worn now. See `TextStream`."""
        options = Options.of(max_new_tokens, temperature, top_p, seed, stop)
        tokenizer, tokens = self._prompt(message, system, options)
        model = self.model
        return TextStream(self._turn, lambda emit, cancelled: write(model, tokenizer, tokens, options, emit, cancelled))

    # ------------------------------------------------- moving and saving

    def to(self, *arguments: Any, **options: Any) -> Self:
        """`model.to(…)` on the base weights; what is worn is taken off before and put on again after."""
        with self._turn.held("to()"), self._as_base():
            self.model.to(*arguments, **options)
            self._targets = _by_name(find_targets(self.model))
        return self

    def save_pretrained(self, directory: str | PathLike[str], **options: Any) -> None:
        """Save the BASE weights (and the tokenizer), whatever is worn."""
        with self._turn.held("save_pretrained()"), self._as_base():
            self.model.save_pretrained(directory, **options)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(directory)

    # -------------------------------------------------- inside: switching

    def _asked(self, persona: str | Mapping[str, float], strength: float) -> dict[str, float]:
        """What the caller wants to wear, checked."""
        if isinstance(persona, Mapping):
            if strength != 1.0:
                raise OptionError("a blend holds its own strengths: give {name: strength} alone.")
            wanted = dict(persona)
        else:
            wanted = {persona: strength}
        self._wardrobe.check_known(wanted)
        return check_strengths(wanted)

    def _wear(self, wanted: dict[str, float]) -> None:
        """From what is worn, through the base bits, to `wanted`; on any error, back to what was worn."""
        if wanted == self._worn:
            return
        if not self._worn:
            _check_unworn(self.model)
        patches = self._patches_of(wanted)
        before = self._worn, self._patches
        try:
            self._swap(wanted, patches)
        except BaseException:  # Ctrl-C and a full memory included
            self._swap(*before)
            raise
        self._wardrobe.used(wanted)

    def _swap(self, wanted: dict[str, float], patches: list[Patch]) -> None:
        if wanted and not is_guarded(self.model):
            guard(self.model)  # first: no copy may see weights that are half masked
        try:
            take_off(self._undo)
            put_on(patches, self._undo)
        except BaseException:
            take_off(self._undo)
            self._worn, self._patches = {}, []
            unguard(self.model)
            raise
        self._worn, self._patches = wanted, patches
        if not wanted:
            unguard(self.model)

    def _patches_of(self, wanted: Mapping[str, float]) -> list[Patch]:
        """One patch for each target on which a persona of `wanted` drops a weight."""
        if not wanted:
            return []
        self._check_current()
        patches = []
        for name in dict.fromkeys(target for persona in wanted for target in self._wardrobe[persona]):
            target = self._targets[name]
            parts = [
                (storage_positions(target, self._wardrobe[persona][name]), strength)
                for persona, strength in wanted.items()
                if name in self._wardrobe[persona]
            ]
            positions, gate = (parts[0][0], single_gate(parts[0][1])) if len(wanted) == 1 else merge(parts)
            if positions.size:
                patches.append(patch(target, positions, gate))
        return patches

    def _check_current(self) -> None:
        # Masks on parameters that the model has dropped would change nothing, and nobody would notice.
        own = {id(parameter) for parameter in self.model.parameters()}
        if not all(id(target.parameter) in own for target in self._targets.values()):
            raise ModelError("the model's parameters were replaced: make a new PersonaModel for the new weights.")

    @contextlib.contextmanager
    def _as_base(self) -> Iterator[None]:
        worn = self._worn
        self._wear({})
        try:
            yield
        finally:
            self._wear(worn)

    # --------------------------------------------------- inside: checking

    def _prompt(
        self, message: str | Sequence[Message], system: str | None, options: Options
    ) -> tuple[PreTrainedTokenizerBase, list[int]]:
        if self.tokenizer is None:
            raise OptionError("this PersonaModel was made without a tokenizer: give it one, or use generate().")
        tokens = prompt_tokens(self.tokenizer, message, system)
        return self.tokenizer, fitted(tokens, context_length(self.model), options.max_new_tokens)

    def _check_identity(self, identity: ModelIdentity, allow_other_weights: bool) -> None:
        for name, shape in identity.targets.items():
            target = self._targets.get(name)
            if target is None or target.shape != shape:
                found = "is not a target of this model" if target is None else f"has shape {target.shape} here"
                raise MaskMismatchError(
                    f"these personas were made for {identity.id} ({identity.architecture}), whose {name} "
                    f"of shape {shape} {found}: load that model, or discover them anew on this one."
                )
        mine = self._fingerprint(frozenset(identity.targets))
        if mine == identity.fingerprint:
            return
        difference = (
            f"these personas were made for {identity.id} with other weights of the same names and shapes "
            f"({identity.fingerprint[:19]}…, here {mine[:19]}…)"
        )
        if not allow_other_weights:
            raise MaskMismatchError(
                f"{difference}: load that model, or accept that they may not work here with "
                "--allow-other-weights (allow_other_weights=True)."
            )
        warnings.warn(f"{difference}; they may not work here: evaluate them.", stacklevel=3)

    def _fingerprint(self, names: frozenset[str]) -> str:
        if names not in self._fingerprints:
            with self._as_base():
                self._fingerprints[names] = fingerprint([self._targets[name] for name in names])
        return self._fingerprints[names]

    def _needed(self) -> set[str]:
        """Personas that are worn, or that an open `persona()` block will put on again."""
        return set(self._worn).union(*self._to_restore)


def _check_unworn(model: PreTrainedModel) -> None:
    if is_guarded(model):
        raise PersonaInUseError(
            "another PersonaModel wears a persona on this model: use that one, or disable_persona() there."
        )


def _by_name(targets: Sequence[Target]) -> dict[str, Target]:
    return {target.name: target for target in targets}
