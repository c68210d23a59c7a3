"""What several conditions need of discovery, opened only when the first of them asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import (
    DEV_ITEMS,
    READ_ANSWERS,
    Calibration,
    Progress,
    Session,
    encode_contrast,
    open_session,
)
from personae.errors import DataError, MaskMismatchError, OptionError
from personae.models import Question, Target
from personae.personas import Contrast, split
from personae.personas.split import normalised
from personae.subnetwork import Artefact


class Shared:
    """One session, its dev set, its candidates by cheap share.

    given: a session of the caller's, used as it is. calibration, dev: items of the caller's own, instead of those of a
    split. Errors: `OptionError` when the given session was opened on other items than `calibration`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contrast: Contrast,
        artefact: Artefact | None,
        split_seed: int | None,
        progress: Progress,
        given: Session | None,
        calibration: Contrast | None = None,
        dev: Contrast | None = None,
    ) -> None:
        self.model, self.tokenizer, self.contrast, self.artefact = model, tokenizer, contrast, artefact
        self.split_seed, self.progress, self.given = split_seed, progress, given
        self.own_calibration, self.own_dev = calibration, dev
        if given is None or calibration is None:
            return
        if given.calibration != encode_contrast(model, tokenizer, calibration):
            raise OptionError(f"the session was not opened on the items of '{calibration.name}': open it on them.")

    @cached_property
    def session(self) -> Session:
        """The caller's session, or one on the calibration items with the artefact's targets, tokens and seed."""
        if self.given is not None:
            return self.given
        made = {} if self.artefact is None else self.artefact[self.contrast.positive].provenance.parameters
        seed, tokens = made.get("seed", 0), made.get("tokens", "answer")
        text = {} if self.artefact is None else self.artefact.metadata.get("generic_text")
        answers = text.get("answers") if isinstance(text, dict) else None
        return open_session(
            self.model, self.tokenizer, self.calibration,
            targets=None if self.artefact is None else list(self.artefact.model.targets),
            tokens=tokens if isinstance(tokens, str) else "answer", seed=seed if isinstance(seed, int) else 0,
            generic_answers=answers if isinstance(answers, int) else READ_ANSWERS,
            progress=self.progress,
        )  # fmt: skip

    @property
    def calibration(self) -> Contrast:
        """The items that calibrate, as text: the caller's own, else the calibration part, else (no split) all items."""
        if self.own_calibration is not None:
            return self.own_calibration
        return self.contrast if self.split_seed is None else split(self.contrast, seed=self.split_seed).calibration

    @cached_property
    def dev(self) -> Calibration:
        """The items on which a method chooses: the caller's own, else the dev part, else (no split) all items."""
        part = self.contrast if self.own_dev is None else self.own_dev
        if self.split_seed is not None:
            part = split(self.contrast, seed=self.split_seed).dev
            part = part.take(min(DEV_ITEMS, len(part)))
        return encode_contrast(self.model, self.tokenizer, part)

    def candidates(self, cheap_share: float | None) -> Mapping[str, torch.Tensor] | None:
        """Where cheapness u < c; None for methods that choose among all weights."""
        return None if cheap_share is None else self.session.candidates(cheap_share)

    def targets(self, every: list[Target]) -> list[Target]:
        """The targets over which sparsity counts: the session's, else the artefact's, else all.

        Errors: `MaskMismatchError` when the artefact masks targets that the caller's session does not have.
        """
        masked = None if self.artefact is None else set(self.artefact.model.targets)
        if self.given is None:
            return [t for t in every if masked is None or t.name in masked]
        missing = sorted((masked or set()) - {t.name for t in self.given.targets})
        if missing:
            raise MaskMismatchError(
                f"the artefact was made on {len(missing)} targets that the session leaves out, such as {missing[0]}: "
                "open the session on the artefact's targets."
            )
        return self.given.targets

    def other_text(self) -> str | None:
        """A sentence if the artefact's generic text is not the session's, so that candidates may differ; else None."""
        recorded = None if self.artefact is None else self.artefact.metadata.get("generic_text")
        if not isinstance(recorded, dict) or recorded.get("sha256") == self.session.generic.sha256:
            return None
        return (
            f"the artefact's generic text ({recorded.get('source')}) is not that of the controls "
            f"({self.session.generic.source}): their candidates, and their capability, rest on another text."
        )


def check_unread(session: Session, tested: Sequence[Question]) -> None:
    """A caller's session was not opened on questions that are tested: what is found in it would fit them.

    Errors: `OptionError` saying how many were.
    """
    own = session.calibration
    read = {tuple(q.prompt) for q in own.paired} | {tuple(a.prompt) for a in (*own.positive, *own.negative)}
    common = sum(tuple(question.prompt) in read for question in tested)
    if common:
        raise OptionError(
            f"the session was opened on {common} of the {len(tested)} questions that are tested: open it on the "
            "calibration part, split(contrast, seed=split_seed).calibration."
        )


def check_apart(test: Contrast, part: Contrast, use: str) -> None:
    """No question of `part`, which calibrates or chooses (`use`), is tested; white space and case aside.

    Errors: `DataError` when one is, or when the poles of the two are not the same in the same order.
    """
    if part.poles != test.poles:
        raise DataError(
            f"the {use} items '{part.name}' are {' against '.join(part.poles)}, but '{test.name}' is "
            f"{' against '.join(test.poles)}: name the poles alike, in the same order."
        )
    tested = {normalised(question) for question in test.prompts}
    common = [question for question in part.prompts if normalised(question) in tested]
    if common:
        raise DataError(
            f"{len(common)} of the {use} items '{part.name}' are tested in '{test.name}' too, such as {common[0]!r}: "
            "take them out of one of the two."
        )
