"""PersonaModel: one resident model that wears personas."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import OptionError, PersonaInUseError
from personae.models import Target, context_length, find_targets, fingerprint
from personae.runtime.blend import check_strengths
from personae.runtime.costs import Costs
from personae.runtime.dressing import Dressing, check_unworn
from personae.runtime.generation import Message, Options, TextStream, fitted, prompt_tokens, write
from personae.runtime.identity import check_identity
from personae.runtime.look import Look, look_of
from personae.runtime.mixer import Mixer
from personae.runtime.switch import check_masks
from personae.runtime.turn import Turn
from personae.runtime.wardrobe import Memory, Source, Wardrobe, read_shapes, read_source

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
    the caller has them already. costs: by which `mixable` decides; None: measured on this machine when first needed.
    Do not train or replace the weights meanwhile; make a new one after that.

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
        costs: Costs | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._wardrobe = Wardrobe(max_personas)
        self._dressing = Dressing(model, find_targets(model) if targets is None else targets, self._wardrobe)
        self._mixer = Mixer(model, self._targets, self._wardrobe, costs)
        self._fingerprints: dict[frozenset[str], str] = {}  # of the base weights, by the targets it covers
        self._to_restore: list[dict[str, float]] = []  # what open `persona()` blocks will put back
        self._in_rows: frozenset[str] = frozenset()  # personas of the open `rows()` block
        self._turn = Turn()

    # ------------------------------------------------------ personas held

    @property
    def personas(self) -> tuple[str, ...]:
        """Names of the personas that can be worn, in the order in which they were added."""
        return self._wardrobe.names

    def memory(self) -> dict[str, int]:
        """Bytes that the masks of each persona hold."""
        return self._wardrobe.memory()

    def memory_of(self, source: Source, names: Sequence[str] | None = None) -> dict[str, Memory]:
        """Bytes that the personas of a source would take here if they were added; nothing is added.

        Of a `.persona` file only the header is read. Errors: as `add_personas`, but the weights are not compared.
        """
        found = {}
        for name, shapes in read_shapes(source, names).items():
            check_masks(self._targets, shapes, f"persona {name!r}")
            widths = {target: self._targets[target].parameter.element_size() for target in shapes}
            found[name] = Memory.of(shapes, widths)
        return found

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
                check_identity(identity, self._targets, self._fingerprint, allow_other_weights, stacklevel=2)
            self._wardrobe.add(chosen, self._needed())
            self._mixer.forget()
        return added

    def remove_persona(self, name: str) -> None:
        """Forget a persona. Errors: `UnknownPersonaError`; `PersonaInUseError` while it is worn or pinned."""
        with self._turn.held("remove_persona()"):
            self._wardrobe.check_known([name])
            if name in self._needed():
                raise PersonaInUseError(f"persona {name!r} is worn, or an open persona() block will put it on again.")
            self._wardrobe.remove(name)
            self._mixer.forget()

    def pin(self, look: Look) -> None:
        """Keep the personas of a look: until `unpin` they are neither evicted nor removed. Pins are counted.

        It waits for nobody. Errors: `UnknownPersonaError`.
        """
        self._wardrobe.pin(look)

    def unpin(self, look: Look) -> None:
        """Take back one `pin`. Errors: `OptionError` for a look that is not pinned."""
        self._wardrobe.unpin(look)

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
            self._dressing.wear(self._asked(persona, strength))

    def disable_persona(self) -> None:
        """The base weights, bit for bit."""
        with self._turn.held("disable_persona()"):
            self._dressing.wear({})

    @contextlib.contextmanager
    def persona(self, persona: str | Mapping[str, float], strength: float = 1.0) -> Iterator[Self]:
        """Wear a persona for a block and put back what was worn before it; blocks nest.

        Other threads wait for the end of the block. A stream that is still being written at the end of the
        block is waited for. Errors as `set_persona`.
        """
        self._turn.acquire("persona()")
        try:
            before, wanted = self._worn, self._asked(persona, strength)
            self._to_restore.append(before)
            try:  # from before the switch on: Ctrl-C may come right behind it
                self._dressing.wear(wanted)
                yield self
            finally:
                try:
                    self._turn.wait_for_generation()
                finally:
                    self._to_restore.remove(before)
                    self._dressing.wear(before)
        finally:
            self._turn.release()

    # ------------------------------------------------------ mixed batches

    def look(self, persona: str | Mapping[str, float] | None, strength: float = 1.0) -> Look:
        """What a row of a batch can wear: one persona, a blend {name: strength}, or None, the base model.

        Errors: `UnknownPersonaError`; `OptionError` for a strength out of range.
        """
        look = look_of(persona, strength)
        self._wardrobe.check_known(persona if isinstance(persona, Mapping) else [] if persona is None else [persona])
        return look

    def edition(self, look: Look) -> Hashable:
        """Stands for the very masks that the names of a look mean now; another when one is removed and added again.

        It waits for nobody. Errors: `UnknownPersonaError`.
        """
        return tuple(worn.edition for worn in self._wardrobe.worn(look))

    def mixable(self, look: Look) -> bool:
        """Whether rows of this look may share a batch with others, and cost less so than in a forward of their own.

        Never where it drops weights of experts, whose inputs do not show whose row they are; and not where its products
        would take more time than that forward, or more memory than a quarter of the weights. So a dense mask is not,
        unless it drops whole channels. What products and calls cost is measured once, in some hundredths of a second;
        give `costs` for a fixed answer. Errors: `UnknownPersonaError`.
        """
        return self._mixer.mixable(look)

    @contextlib.contextmanager
    def rows(self, looks: Sequence[Look]) -> Iterator[None]:
        """Forwards of `model` in the block are of a batch of len(looks) rows, row i under looks[i]; without gradients.

        Each row gets the logits that it would get with its persona put on alone, up to rounding. The weights stay
        those of the base model. Other threads wait for the end of the block; `set_persona` and all that moves the
        weights is refused in it.

        Errors: `PersonaInUseError` while a persona is worn, or inside another such block; `UnknownPersonaError`;
        `OptionError` for no looks, or one that is not `mixable`; in the block, for a forward of another batch size.
        """
        self._turn.acquire("rows()")
        try:
            if self._worn:
                raise PersonaInUseError(
                    "rows() needs the base weights, but a persona is worn: disable_persona() first."
                )
            check_unworn(self.model)
            block = self._mixer.block(tuple(looks))
            self._in_rows = frozenset(name for look in looks for name, _ in look)
            try:
                with block:
                    try:
                        yield
                    finally:
                        self._turn.wait_for_generation()
            finally:
                self._in_rows = frozenset()
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
        return self.reply(message, Options.of(max_new_tokens, temperature, top_p, seed, stop), system=system)[0]

    def reply(
        self, message: str | Sequence[Message], options: Options, *, system: str | None = None
    ) -> tuple[str, bool]:
        """`chat`, and whether the answer came to its end, by an end token or a stop string; else it was cut."""
        tokenizer, tokens = self._prompt(message, system, options)
        pieces: list[str] = []
        with self._turn.generating("chat()"):
            ended = write(self.model, tokenizer, tokens, options, pieces.append, threading.Event())
        return "".join(pieces).strip(), ended

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
        with self._turn.held("to()"), self._dressing.as_base():
            check_unworn(self.model)
            self.model.to(*arguments, **options)
            self._dressing.targets = {target.name: target for target in find_targets(self.model)}
            self._mixer.moved(self._targets)
        return self

    def save_pretrained(self, directory: str | PathLike[str], **options: Any) -> None:
        """Save the BASE weights (and the tokenizer), whatever is worn."""
        with self._turn.held("save_pretrained()"), self._dressing.as_base():
            self.model.save_pretrained(directory, **options)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(directory)

    # ------------------------------------------------------------- inside

    @property
    def _targets(self) -> dict[str, Target]:
        return self._dressing.targets

    @property
    def _worn(self) -> dict[str, float]:
        return self._dressing.worn

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

    def _prompt(
        self, message: str | Sequence[Message], system: str | None, options: Options
    ) -> tuple[PreTrainedTokenizerBase, list[int]]:
        if self.tokenizer is None:
            raise OptionError("this PersonaModel was made without a tokenizer: give it one, or use generate().")
        tokens = prompt_tokens(self.tokenizer, message, system)
        return self.tokenizer, fitted(tokens, context_length(self.model), options.max_new_tokens)

    def _fingerprint(self, names: frozenset[str]) -> str:
        if names not in self._fingerprints:
            with self._dressing.as_base():
                self._fingerprints[names] = fingerprint([self._targets[name] for name in names])
        return self._fingerprints[names]

    def _needed(self) -> set[str]:
        """Personas that are worn, or that an open `persona()` block will put on again."""
        return set(self._worn).union(self._in_rows, *self._to_restore)
