"""How large `.persona` files of the default model are, against what information theory asks for.

    python -m benchmarks.file_size

file.over_entropy: bytes of a whole file over n·H₂(p), n the weights of all targets and p the share dropped, for one
persona with uniformly random masks at 0.2 %, 1 % and 50 % and the provenance of a real one; the worst of the three.
file.sixteen_over_one: one file of 16 personas that drop half of the weights and differ from each other on 1 % of them,
over the file of one of them.
types: the 16 combinations of four contrasts' poles are blends at run time. They are worn from the file of the eight
poles, and the weights that are then zero are those of the four masks; the file of 16 masks of their own stands beside.
overlap_seconds: `compare` of two of these subnetworks, the slowest of three shares (seconds do not travel).
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, machine, write
from personae import PersonaModel, find_targets, load_model
from personae.models import Target, fingerprint
from personae.subnetwork import Artefact, Mask, ModelIdentity, Subnetwork, compare, inspect, load, save

SHARES = (0.002, 0.01, 0.5)
DIFFERENCE = 0.01  # between any two of the sixteen
POLE_SHARE = 0.005
POLES = (
    ("extravert", "introvert"),
    ("intuitive", "sensing"),
    ("feeling", "thinking"),
    ("judging", "perceiving"),
)
SEED = 0
HEADLINE = RESULTS / "ai_persona_power.persona"

Masks = dict[str, Mask]


def main() -> None:
    """Make the files in a temporary folder, measure them, write the result."""
    model, tokenizer = load_model()
    targets = find_targets(model)
    identity = ModelIdentity(
        id="SmolLM2-135M-Instruct",
        fingerprint=fingerprint(targets),
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        targets={t.name: t.shape for t in targets},
    )
    with tempfile.TemporaryDirectory() as folder:
        single = entropies(identity, Path(folder))
        many = sixteen(identity, Path(folder))
        types = blends(PersonaModel(model, tokenizer, targets=targets), targets, identity, Path(folder))
    result = {
        "file.over_entropy": max(row["over_entropy"] for row in single),
        "file.sixteen_over_one": many["sixteen"] / many["one"],
        "single": single,
        "many": many,
        "types": types,
        "overlap_seconds": overlap(identity),
        "weights": sum(t.size for t in targets),
        "targets": len(targets),
        "fingerprint": identity.fingerprint,
        "seed": SEED,
        "machine": machine(),
        "command": "python -m benchmarks.file_size",
    }
    print(json.dumps(result, indent=1))
    print(write("file_size", result))


def entropies(identity: ModelIdentity, folder: Path) -> list[dict[str, float]]:
    """One random persona a file, at each share."""
    rows = []
    for number, share in enumerate(SHARES):
        one = subnetwork("random", draw(identity, share, number))
        size = saved(identity, [one], folder / "one.persona")
        p = one.sparsity
        bound = one.size * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
        rows.append({"share": share, "bytes": size, "entropy_bytes": bound, "over_entropy": size / bound})
    return rows


def sixteen(identity: ModelIdentity, folder: Path) -> dict[str, Any]:
    """Sixteen dense personas with little between them, and one of them alone."""
    flipped = (1 - math.sqrt(1 - 2 * DIFFERENCE)) / 2  # two independent sets of flips differ on 2·q·(1 − q)
    common = draw(identity, 0.5, 100)
    personas = [
        subnetwork(f"p{i}", {t: common[t] ^ ~mask for t, mask in draw(identity, flipped, 101 + i).items()})
        for i in range(16)
    ]
    pairs = [a.difference_rate(b) for a, b in itertools.combinations(personas, 2)]
    assert all(abs(pair - DIFFERENCE) < 0.0002 for pair in pairs)
    one = saved(identity, personas[:1], folder / "one.persona")
    all_of_them = saved(identity, personas, folder / "sixteen.persona")
    header = inspect(folder / "sixteen.persona")
    shared = sum(payload.base is not None for persona in header.personas for payload in persona.payloads.values())
    return {
        "one": one,
        "sixteen": all_of_them,
        "mutual_difference": [min(pairs), max(pairs)],
        "payloads": {"consensus": len(header.consensus), "differences": shared},
    }


def blends(actor: PersonaModel, targets: list[Target], identity: ModelIdentity, folder: Path) -> dict[str, Any]:
    """Wear all sixteen types from the file of the eight poles and look at the weights."""
    poles = [subnetwork(name, draw(identity, POLE_SHARE, 200 + i)) for i, name in enumerate(itertools.chain(*POLES))]
    path = folder / "poles.persona"
    size = saved(identity, poles, path)
    before = path.read_bytes()
    actor.add_personas(path)
    masks = {pole.name: pole.masks for pole in poles}
    base = {t.name: t.weight.clone() for t in targets}
    types = list(itertools.product(*POLES))
    unions: list[Subnetwork] = []
    for poles_of_type in types:
        union = {t: Mask.full(shape) for t, shape in identity.targets.items()}
        for pole in poles_of_type:
            union = {t: mask & masks[pole][t] for t, mask in union.items()}
        unions.append(subnetwork("-".join(poles_of_type), union))
        with actor.persona(dict.fromkeys(poles_of_type, 1.0)):
            for target in targets:
                kept = torch.from_numpy(union[target.name].keep_bool())
                assert torch.equal(target.weight, base[target.name] * kept)
    assert all(torch.equal(t.weight, base[t.name]) for t in targets)
    assert set(actor.personas) == set(masks)
    assert path.read_bytes() == before
    return {
        "poles_file": size,
        "types_worn_from_it": len(types),
        "bytes_added": path.stat().st_size - size,
        "file_of_their_own_masks": saved(identity, unions, folder / "types.persona"),
        "share_of_a_pole": POLE_SHARE,
    }


def overlap(identity: ModelIdentity) -> float:
    """Seconds for the mask difference of two subnetworks and its chance level."""
    slowest = 0.0
    for share in (0.002, 0.03, 0.5):
        first, second = draw(identity, share, 300), draw(identity, share, 301)
        started = time.perf_counter()
        compare(first, second)
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


def draw(identity: ModelIdentity, share: float, stream: int) -> Masks:
    """Uniformly random masks over all targets."""
    chance = np.random.default_rng([SEED, stream])
    shapes = sorted(identity.targets.items())
    return {t: Mask.from_dropped(chance.random(shape, dtype=np.float32) < share) for t, shape in shapes}


def subnetwork(name: str, masks: Mapping[str, Mask]) -> Subnetwork:
    """Masks with a provenance as long as a real one: that of two rounds, but for the sparsities."""
    if not HEADLINE.is_file():
        sys.exit(f"no {HEADLINE.name} in benchmarks/results: run python -m benchmarks.ai_persona power first.")
    dropped, size = sum(m.dropped for m in masks.values()), sum(m.size for m in masks.values())
    changes = {
        "sparsity": dropped / size,
        "sparsity_per_target": {target: round(mask.sparsity, 6) for target, mask in masks.items()},
    }
    return Subnetwork(name, masks, inspect(HEADLINE).personas[0].provenance.model_copy(update=changes))


def saved(identity: ModelIdentity, personas: list[Subnetwork], path: Path) -> int:
    """Bytes of the file of these personas, which reads back as they are."""
    artefact = Artefact(identity, {p.name: p for p in personas})
    save(artefact, path)
    assert load(path) == artefact
    return path.stat().st_size


if __name__ == "__main__":
    main()
