"""The steps of one hazard, in their order, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personae.analysis.audit_attacks import FRESH, judged, prompt_attacks
from personae.analysis.audit_curve import accessibility, alignment_of, found_again, places
from personae.analysis.audit_disable import find_disabling
from personae.analysis.audit_model import Masks, Subject, count_dropped, kept_of, loss_of, pack, sha256_of, unpack
from personae.analysis.audit_result import (
    Accessibility,
    Alignment,
    Attack,
    Disabling,
    FoundAgain,
    Hazard,
    Restored,
)
from personae.analysis.audit_steps import (
    columns,
    kept_on_base,
    read_attacks,
    read_curve,
    read_kept,
    read_restored,
    sha256s,
    timed,
)
from personae.analysis.audit_verdict import Figures, exposures, is_absent, largest_counted, sentence, verdict
from personae.evaluation import Estimate, difference, interval
from personae.evaluation.scoring import Items, doubts, encode_items, wins
from personae.personas import Contrast
from personae.personas.split import Split
from personae.runtime import wearing


class Audited:
    """The steps of one hazard, in their order."""

    def __init__(
        self,
        subject: Subject,
        contrast: Contrast,
        parts: Split[Contrast],
        kept: Sequence[Contrast],
        system_prompts: Sequence[str],
        given: Masks | None,
    ) -> None:
        self.subject, self.contrast, self.parts, self.kept, self.given = subject, contrast, parts, kept, given
        self.settings = settings = subject.settings
        self.test = encode_items(subject.model, subject.tokenizer, parts.test)
        self.attacks = prompt_attacks(
            subject.model, subject.tokenizer, parts.test, parts.calibration, system_prompts=system_prompts,
            shots=settings.shots,
        )  # fmt: skip
        self.key = {"contrast": contrast.name, **{n: p.sha256 for n, p in parts._asdict().items() if n != "dev"}}
        self.drawn = {"resamples": settings.resamples, "seed": settings.seed}
        self.shapes = {target.name: target.shape for target in subject.targets}
        self.seconds = 0.0

    def run(self) -> tuple[Hazard, Masks | None]:
        """The hazard, and the mask that disables it (None where there is none)."""
        bare = self._step("base", {}, lambda: {"margins": self.subject.margins("base", self.test)})
        base = np.array(bare["margins"])
        on_base = self._curve("curve", {}, bare["margins"], control=self.settings.control)
        curve = self._accessibility(base, on_base)
        restored = self._restored(on_base)
        attacked = self._attacked("attacks", None)
        attacks = self._judged(base, attacked, None)
        seen = Figures(
            self.settings.threshold, self.settings.target, curve.base.value,
            max(point.alignment.value for point in curve.points), largest_counted(attacks, disabled=False),
        )  # fmt: skip
        masks, mask = None, None
        if self.settings.disable and not is_absent(seen):
            mask, masks = self._disabling()
        if mask is None or masks is None:
            return self._hazard(base, curve, on_base, restored, attacks, seen, None, None, None), None
        after = np.array(self._step("held-out", self._under(masks), lambda: self._held_out(masks))["margins"])
        attacks = self._judged(base, attacked, self._attacked("attacks", masks))
        again = None
        if self.settings.again:
            on_disabled = self._curve("fresh", self._under(masks), after.tolist(), control=False, masks=masks)
            again = found_again(
                columns(on_base["margins"]), columns(on_disabled["margins"]),
                (curve, self._accessibility(after, on_disabled)), **self.drawn,
            )  # fmt: skip
            attacks.append(self._fresh(base, on_base, on_disabled))
        lowered = difference(wins(base), wins(after), **self.drawn)
        disabled = alignment_of(after, self.test.tied, **self.drawn)
        seen = Figures(
            seen.threshold, seen.target, seen.base, seen.highest, seen.attacked, disabled.all.value,
            largest_counted(attacks, disabled=True), lowered, mask.loss.within,
            tuple(kept.contrast for kept in mask.kept if kept.touched),
        )  # fmt: skip
        return self._hazard(base, curve, on_base, restored, attacks, seen, mask, disabled, again), masks

    # --- steps --------------------------------------------------------------------------------------------

    def _step(self, name: str, more: Mapping[str, Any], compute: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.subject.part(
            f"{self.contrast.name}-{name}", {**self.key, **more}, timed(compute)
        )  # fmt: skip
        self.seconds += found["seconds"]
        return found

    def _curve(
        self, name: str, more: Mapping[str, Any], base: list[float], *, control: bool, masks: Masks | None = None
    ) -> dict[str, Any]:
        """The curve on the base model, or on the model that wears `masks`."""
        settings, subject = self.settings, self.subject
        decided = {
            "shares": settings.shares, "cheap_share": settings.cheap_share, "threshold": settings.threshold,
            "control": control, **more,
        }  # fmt: skip

        def compute() -> Any:
            if masks is None:
                session = subject.session(self.parts.calibration)
                return read_curve(subject, session, self.test, base, control=control)
            _ = subject.base_searched  # before anything is worn
            with wearing(subject.targets, masks):
                session = subject.fresh_session(self.parts.calibration)
                return read_curve(subject, session, self.test, base, control=control)

        return self._step(name, decided, compute)

    def _restored(self, on_base: Mapping[str, Any]) -> tuple[Restored, ...]:
        settings = self.settings
        if not settings.groups:
            return ()
        masks = unpack(on_base["mask"], self.shapes)
        fewer = self.parts.test.take(min(settings.restore_items, len(self.parts.test)), settings.seed)

        def compute() -> dict[str, Any]:
            items = encode_items(self.subject.model, self.subject.tokenizer, fewer)
            return read_restored(self.subject, masks, items, settings.groups)

        decided = {"items": fewer.sha256, "groups": settings.groups, **self._under(masks)}
        found = self._step("restored", decided, compute)
        return tuple(
            Restored(
                tuple(group["blocks"]), len(found["all"]),
                difference(np.array(found["all"]), np.array(group["margins"]), **self.drawn),
            )
            for group in found["groups"]
        )  # fmt: skip

    @property
    def _notes(self) -> dict[str, str]:
        return {attack.name: attack.note for attack in self.attacks}

    def _attacked(self, name: str, masks: Masks | None) -> dict[str, Any]:
        decided = {"attacks": self._notes, **({} if masks is None else self._under(masks))}
        where = "the base model" if masks is None else "the disabled model"
        return self._step(name, decided, lambda: read_attacks(self.subject, self.attacks, masks, where))

    def _under(self, masks: Masks) -> dict[str, Any]:
        return {"worn": sha256_of(masks)}

    def _held_out(self, masks: Masks) -> dict[str, Any]:
        return {"margins": self.subject.margins("held-out items, disabled", self.test, masks)}

    def _disabling(self) -> tuple[Disabling | None, Masks | None]:
        """The mask that disables with what it costs; (None, None) where nothing keeps the budget."""
        subject, settings = self.subject, self.settings
        dev = encode_items(subject.model, subject.tokenizer, self.parts.dev)
        decided: dict[str, Any] = {"dev": self.parts.dev.sha256, "budget": settings.max_capability_loss}
        if self.given is not None:
            found = self._step("given", {**decided, **self._under(self.given)}, lambda: self._given(dev))
        else:
            decided |= {
                "target": settings.target, "cheap_share": settings.cheap_share, "rounds": settings.rounds,
                "resamples": settings.resamples,
            }  # fmt: skip
            found = self._step(
                "disable", decided, lambda: find_disabling(subject, subject.session(self.parts.calibration), dev)
            )
        if not found["dropped"]:
            return None, None
        masks = unpack(found["mask"], self.shapes)
        cost = self._step("cost", {**self._under(masks), "kept": sha256s(self.kept)}, lambda: self._cost(masks))
        read = alignment_of(np.array(found["dev"]), dev.tied, **self.drawn)
        mask = Disabling(
            persona=f"disable-{self.contrast.positive}",
            dropped=found["dropped"],
            share=found["dropped"] / subject.size,
            rounds=found["rounds"],
            target=settings.target,
            dev=read,
            reached=read.all.value <= settings.target,
            budget=settings.max_capability_loss,
            searched_loss_bound=found["bound"],
            probes=found["probes"],
            loss=loss_of(cost["rises"], settings.max_capability_loss),
            kept=kept_of(self.kept, cost, **self.drawn),
            own=None if self.given is not None else self._own(masks),
        )
        return mask, masks

    def _own(self, masks: Masks) -> Estimate:
        """Alignment on as many of the pairs that the mask was found on as dev has items."""
        subject, pairs = self.subject, self.parts.calibration
        some = pairs.take(min(self.settings.dev_items, len(pairs)), self.settings.seed)

        def compute() -> dict[str, Any]:
            items = encode_items(subject.model, subject.tokenizer, some)
            return {"margins": subject.margins("pairs the mask was found on", items, masks)}

        found = self._step("own", {**self._under(masks), "items": some.sha256}, compute)
        return interval(wins(np.array(found["margins"])), **self.drawn)

    def _given(self, dev: Items) -> dict[str, Any]:
        assert self.given is not None
        bound = self.subject.searched(self.given).loss_bound(self.subject.base_searched)
        return {
            "mask": pack(self.given), "dropped": count_dropped(self.given), "bound": bound, "rounds": 0, "probes": 1,
            "dev": self.subject.margins("dev items, disabled", dev, self.given),
        }  # fmt: skip

    def _cost(self, masks: Masks) -> dict[str, Any]:
        return {
            "rises": self.subject.loss(masks),
            "before": kept_on_base(self.subject, self.kept),
            "after": read_kept(self.subject, self.kept, masks, "the disabled model"),
        }

    # --- what they mean -----------------------------------------------------------------------------------

    def _accessibility(self, base: Any, read: Mapping[str, Any]) -> Accessibility:
        return accessibility(
            base, columns(read["margins"]), None if read["control"] is None else columns(read["control"]),
            shares=read["shares"], dropped=read["dropped"], threshold=self.settings.threshold, loss=read["loss"],
            **self.drawn,
        )  # fmt: skip

    def _remarks(
        self, seen: Figures, mask: Disabling | None, curve: Accessibility, again: FoundAgain | None
    ) -> list[str]:
        settings, said = self.settings, []
        if mask is None and settings.disable and not is_absent(seen):
            said.append(f"No mask that was tried keeps the budget of {settings.max_capability_loss:g} nats a token.")
        if mask is not None and not mask.reached:
            said.append(f"The target of {mask.target:g} is not reached on dev: {mask.dev.all.value:.2f}.")
        if mask is not None and mask.own is not None and not mask.reached and mask.own.high < mask.dev.all.low:
            said.append(
                f"On pairs that the mask was found on it is {mask.own.value:.2f}: it carries over only in part; "
                "more, or more varied, pairs may help."
            )
        if again is not None:
            said.append(in_words(curve, again))
        return said

    def _fresh(self, base: Any, on_base: Mapping[str, Any], on_disabled: Mapping[str, Any]) -> Attack:
        """The fresh discovery as an attack: as many weights as took the base model past the threshold (if no point
        did, as many as were tried)."""
        at = on_base["at"]
        note = f"{on_base['shares'][at]:.3%} of the weights, found afresh"
        attacked, disabled = (np.array(read["margins"][at]) for read in (on_base, on_disabled))
        return judged(FRESH, "weights", note, base, attacked, disabled, threshold=self.settings.threshold, **self.drawn)

    def _judged(self, base: Any, attacked: Mapping[str, Any], disabled: Mapping[str, Any] | None) -> list[Attack]:
        """The prompt attacks, from margins by name."""
        return [
            judged(
                each.name, "prompt", each.note, base, np.array(attacked[each.name]),
                None if disabled is None else np.array(disabled[each.name]),
                threshold=self.settings.threshold, **self.drawn,
            )
            for each in self.attacks
        ]  # fmt: skip

    def _hazard(
        self, base: Any, curve: Accessibility, on_base: Mapping[str, Any], restored: tuple[Restored, ...],
        attacks: Sequence[Attack], seen: Figures, mask: Disabling | None, disabled: Alignment | None,
        again: FoundAgain | None,
    ) -> Hazard:  # fmt: skip
        exposure, to_weights = exposures(seen, attacks)
        return Hazard(
            contrast=self.contrast.name,
            pole=self.contrast.positive,
            opposite=self.contrast.negative,
            sha256=self.contrast.sha256,
            calibration_items=len(self.parts.calibration),
            dev_items=len(self.parts.dev),
            base=alignment_of(base, self.test.tied, **self.drawn),
            accessibility=curve,
            places=places(unpack(on_base["mask"], self.shapes), self.subject.targets),
            restored=restored,
            disabling=mask,
            disabled=disabled,
            lowered=seen.lowered,
            attacks=tuple(attacks),
            found_again=again,
            exposure=exposure,
            exposure_to_weights=to_weights,
            verdict=verdict(seen),
            sentence=sentence(seen, curve.smallest, self._remarks(seen, mask, curve, again)),
            warnings=doubts(self.parts.test),
            seconds=self.seconds,
        )


def in_words(curve: Accessibility, again: FoundAgain) -> str:
    """What a fresh discovery on the disabled model came to, as a sentence."""
    if again.accessibility.smallest is None:
        return f"A fresh discovery there does not reach {curve.threshold:g} with any share that was tried."
    if again.accessibility.smallest == 0:
        return f"The disabled model is past {curve.threshold:g} as it is."
    if again.ratio is None:
        return f"A fresh discovery there reaches {curve.threshold:g} with {again.accessibility.smallest:.3%}."
    return f"A fresh discovery there reaches {curve.threshold:g} with {again.ratio:.1f} times as many weights."
