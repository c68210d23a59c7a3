"""`load_contrast` and `load_persona`: from a source in any known format to the text of a persona."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from personae.errors import DataError, OptionError
from personae.personas.formats import POLE_NAMES, Content, read_content
from personae.personas.sources import Source, open_source
from personae.personas.split import normalised
from personae.personas.types import Contrast, Pair, Persona, Sample

Where = str | Path
Variant = Literal["fiction", "truth"]

# Of each Machine-Mindset dimension, the pole that is positive unless the user says otherwise.
_POSITIVE_POLES = ("introvert", "intuitive", "thinking", "judging")


def load_contrast(
    source: Where | tuple[Where, Where],
    *,
    format: str | None = None,
    positive: str | None = None,
    negative: str | None = None,
    role: str | None = None,
    against: str | None = None,
    paired: bool | None = None,
    variant: Variant | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> Contrast:
    """Two opposed personas from a built-in name, a path, or `hub:owner/name[:split][#file]`.

    Args:
        source: one source, or two one-sided ones: (positive pole, negative pole). A built-in name
            may have its poles in either order.
        format: a name of the table in `personae.personas.formats`; by default told by the fields.
        positive, negative: where the data name their poles, they choose the order (Machine-Mindset
            letters will do); elsewhere they are the names, by default '<stem>' and 'not-<stem>'.
        role, against: RoleBench: the characters of the positive and the negative pole.
        paired: True joins an unpaired set by question (the first answer of each pole; the samples
            left out are counted in a warning); False takes pairs apart; None leaves the data as they are.
        variant: of the hallucination set: 'fiction' (default) or 'truth', its control.
        limit: at most this many pairs, or samples of each pole, chosen with seed 0.
        strict: False leaves broken rows out and counts them in a warning, instead of raising.

    Raises:
        DataError: the data cannot be read, are empty, broken or one-sided (file and line are named).
        OptionError: an unknown source, format, pole or role, or options that do not fit the data.
    """
    if isinstance(source, tuple):
        if role or against:
            raise OptionError("role and against choose within one source; give one, not two.")
        sides = (_content_of(s, format, variant, strict) for s in source)
        contrast = _from_two(*sides, names=(positive, negative))
    else:
        contrast = _from_one(*_content_of(source, format, variant, strict), (positive, negative), (role, against))
    if paired is True and not contrast.paired:
        contrast = _joined(contrast)
    if paired is False and contrast.paired:
        contrast = replace(
            contrast,
            pairs=(),
            positive_samples=contrast.samples(contrast.positive),
            negative_samples=contrast.samples(contrast.negative),
        )
    return contrast if limit is None else contrast.take(_limited(limit, len(contrast)))


def load_persona(
    source: Where,
    *,
    format: str | None = None,
    role: str | None = None,
    variant: Variant | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> Persona:
    """One persona alone, from the same sources and formats as `load_contrast`.

    `role` chooses a RoleBench character, or one pole of two-sided data; it can be left out only if the
    data hold a single voice.

    Raises `DataError` and `OptionError` as `load_contrast` does.
    """
    opened, content = _content_of(source, format, variant, strict)
    if content.pairs:
        contrast = _from_one(opened, content, (None, None), (None, None))
        pole = _one_of(contrast.poles, role, "role", contrast.name)
        prompts = dict(zip(contrast.poles, (contrast.positive_prompt, contrast.negative_prompt), strict=True))
        persona = Persona(
            pole,
            contrast.samples(pole),
            prompts[pole],
            contrast.description,
            contrast.licence,
            contrast.source,
        )
    else:
        voice = _one_of(tuple(content.voices), role, "role", opened.stem)
        header = content.header
        persona = Persona(
            name=voice or header.get("persona", opened.stem),
            samples=content.voices[voice],
            prompt=header.get("prompt"),
            description=header.get("description", ""),
            licence=header.get("licence", "unknown"),
            source=opened.origin,
        )
    return persona if limit is None else persona.take(_limited(limit, len(persona)))


def _content_of(source: Where, format: str | None, variant: Variant | None, strict: bool) -> tuple[Source, Content]:
    opened = open_source(source)
    return opened, read_content(opened.rows, format=format, variant=variant, strict=strict)


def _from_one(
    opened: Source,
    content: Content,
    names: tuple[str | None, str | None],
    roles: tuple[str | None, str | None],
) -> Contrast:
    if content.format == "rolebench":
        return _from_roles(opened, content, names, roles)
    if roles != (None, None):
        raise OptionError(f"role and against belong to rolebench data; {opened.origin} is {content.format}.")
    if content.voices:
        return _from_poles(opened, content, names)
    header = content.header
    stem = header.get("contrast", opened.stem)
    named = "positive" in header and "negative" in header
    own = (header.get("positive", stem), header.get("negative", f"not-{stem}"))
    contrast = Contrast(
        name=stem,
        positive=own[0] if named else names[0] or own[0],
        negative=own[1] if named else names[1] or (f"not-{names[0]}" if names[0] else own[1]),
        pairs=content.pairs,
        positive_prompt=header.get("positive_prompt"),
        negative_prompt=header.get("negative_prompt"),
        description=header.get("description", ""),
        licence=header.get("licence", "unknown"),
        source=opened.origin,
    )
    if opened.turned:
        contrast = contrast.swapped()
    return _in_order(contrast, names) if named else contrast


def _from_roles(
    opened: Source,
    content: Content,
    names: tuple[str | None, str | None],
    roles: tuple[str | None, str | None],
) -> Contrast:
    if names != (None, None):
        raise OptionError("rolebench data name their poles by role: use role and against, not positive and negative.")
    role = _one_of(tuple(content.voices), roles[0], "role", opened.origin)
    if roles[1] is None:
        raise DataError(f"{opened.origin}: '{role}' alone is one-sided: add against=<role>, or use load_persona.")
    against = _one_of(tuple(content.voices), roles[1], "against", opened.origin)
    return _of_voices(opened, content.voices, (role, against))


def _from_poles(opened: Source, content: Content, names: tuple[str | None, str | None]) -> Contrast:
    voices = content.voices
    if len(voices) == 1:
        raise DataError(
            f"{opened.origin}: the data are one-sided: use load_persona, or give a second source with the other pole."
        )
    chosen = [POLE_NAMES.get(name, name) if name else None for name in names]
    for option, name in zip(("positive", "negative"), chosen, strict=True):
        if name is not None:
            _one_of(tuple(voices), name, option, opened.origin)
    if len(voices) > 2:
        if None in chosen:
            raise OptionError(f"{opened.origin} has the poles {', '.join(voices)}: choose positive and negative.")
        return _of_voices(opened, voices, (str(chosen[0]), str(chosen[1])))
    first, second = voices
    poles = (second, first) if second in _POSITIVE_POLES else (first, second)
    return _in_order(_of_voices(opened, voices, poles), (chosen[0], chosen[1]))


def _of_voices(opened: Source, voices: Mapping[str, tuple[Sample, ...]], poles: tuple[str, str]) -> Contrast:
    return Contrast(
        name=f"{poles[0]}-{poles[1]}",
        positive=poles[0],
        negative=poles[1],
        positive_samples=voices[poles[0]],
        negative_samples=voices[poles[1]],
        source=opened.origin,
    )


def _from_two(
    first: tuple[Source, Content], second: tuple[Source, Content], *, names: tuple[str | None, str | None]
) -> Contrast:
    poles: list[str] = []
    for (opened, content), name in zip((first, second), names, strict=True):
        if len(content.voices) != 1:
            raise DataError(f"{opened.origin}: of two sources each must hold one pole; this one holds more.")
        (voice,) = content.voices
        label = name or voice or content.header.get("persona", opened.stem)
        poles.append(POLE_NAMES.get(label, label) if content.format == "machine-mindset" else label)
    if poles[0] == poles[1]:
        raise OptionError(f"both sources are named '{poles[0]}': name the poles with positive and negative.")
    licences = {content.header.get("licence", "unknown") for _, content in (first, second)}
    samples = [next(iter(content.voices.values())) for _, content in (first, second)]
    return Contrast(
        name=f"{poles[0]}-{poles[1]}",
        positive=poles[0],
        negative=poles[1],
        positive_samples=samples[0],
        negative_samples=samples[1],
        positive_prompt=first[1].header.get("prompt"),
        negative_prompt=second[1].header.get("prompt"),
        licence=" and ".join(sorted(licences)),
        source=f"{first[0].origin} and {second[0].origin}",
    )


def _in_order(contrast: Contrast, names: tuple[str | None, str | None]) -> Contrast:
    """`contrast` with its own poles in the order that the options ask for."""
    for option, name in zip(("positive", "negative"), names, strict=True):
        if name is not None:
            _one_of(contrast.poles, name, option, contrast.name)
    if names[0] is not None and names[0] == names[1]:
        raise OptionError(f"positive and negative are both '{names[0]}': they must be the two poles.")
    if names[0] == contrast.negative or names[1] == contrast.positive:
        return contrast.swapped()
    return contrast


def _joined(contrast: Contrast) -> Contrast:
    """Pairs of an unpaired contrast: for each question that both poles answer, their first answers."""
    answers: list[dict[str, Sample]] = [{}, {}]
    for sides, pole in zip(answers, contrast.poles, strict=True):
        for sample in contrast.samples(pole):
            sides.setdefault(normalised(sample.prompt), sample)
    pairs = tuple(
        Pair(sample.prompt, sample.answer, answers[1][question].answer)
        for question, sample in answers[0].items()
        if question in answers[1] and answers[1][question].answer != sample.answer
    )
    if not pairs:
        raise DataError(f"'{contrast.name}': the two poles answer no question in common; leave out paired.")
    total = len(contrast.positive_samples) + len(contrast.negative_samples)
    if total > 2 * len(pairs):
        warnings.warn(
            f"'{contrast.name}': {total - 2 * len(pairs)} of {total} samples have no partner (only one pole "
            "answers the question, a repeat, or equal answers) and were left out.",
            stacklevel=3,
        )
    return replace(contrast, pairs=pairs, positive_samples=(), negative_samples=())


def _one_of(voices: tuple[str, ...], name: str | None, option: str, where: str) -> str:
    if name is None and len(voices) == 1:
        return voices[0]
    name = name if name in voices else POLE_NAMES.get(name or "", name)
    if name not in voices:
        wanted = f"has no '{name}'" if name is not None else f"needs {option}"
        raise OptionError(f"{where} {wanted}: choose {option} from {', '.join(voices)}.")
    return name


def _limited(limit: int, there: int) -> int:
    if limit < 1:
        raise OptionError(f"limit must be at least 1, found {limit}.")
    return min(limit, there)
