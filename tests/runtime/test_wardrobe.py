from __future__ import annotations

import numpy as np
import pytest

from personae.errors import ArtefactError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.runtime.wardrobe import Wardrobe, read_source
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork


def subnetwork(name: str, dropped: int = 1) -> Subnetwork:
    mask = Mask.from_positions(np.arange(dropped), (4, 100))
    return Subnetwork(name, {"w": mask}, Provenance(method="random", sparsity=0.1))


@pytest.fixture
def artefact() -> Artefact:
    identity = ModelIdentity(id="m", fingerprint="sha256:0", architecture="A", dtype="float32", targets={"w": (4, 100)})
    return Artefact(identity, {name: subnetwork(name) for name in "abc"})


def names(subnetworks: list[Subnetwork]) -> list[str]:
    return [each.name for each in subnetworks]


def test_read_all_or_some_of_a_source(artefact, tmp_path) -> None:
    path = tmp_path / "abc.persona"
    artefact.save(path)
    for source in (artefact, path, str(path)):
        chosen, identity = read_source(source, None)
        assert (names(chosen), identity) == (["a", "b", "c"], artefact.model)
        assert names(read_source(source, ["c", "a", "c"])[0]) == ["c", "a"]
        assert names(read_source(source, "b")[0]) == ["b"]
        with pytest.raises(UnknownPersonaError, match="'x'"):
            read_source(source, ["a", "x"])
    assert read_source(subnetwork("s"), None) == ([subnetwork("s")], None)
    assert names(read_source(subnetwork("s"), ["s"])[0]) == ["s"]
    with pytest.raises(UnknownPersonaError, match=r"'x'.*is 's'"):
        read_source(subnetwork("s"), ["x"])
    with pytest.raises(ArtefactError):
        read_source(tmp_path / "nothing.persona", None)


def test_the_least_recently_used_goes_first() -> None:
    wardrobe = Wardrobe(3)
    wardrobe.add([subnetwork(n) for n in "abc"], set())
    wardrobe.used(["a"])
    wardrobe.add([subnetwork("d")], set())
    assert wardrobe.names == ("a", "c", "d")
    wardrobe.add([subnetwork("e")], {"c"})
    assert wardrobe.names == ("c", "d", "e")
    with pytest.raises(UnknownPersonaError, match=r"'a' here \(it was evicted because of max_personas\)"):
        wardrobe.check_known(["c", "a"])
    wardrobe.add([subnetwork("a")], {"d", "e"})
    wardrobe.check_known(["a", "d", "e"])


def test_no_room() -> None:
    wardrobe = Wardrobe(2)
    wardrobe.add([subnetwork("a"), subnetwork("b")], set())
    with pytest.raises(OptionError, match="3 personas do not fit max_personas=2"):
        wardrobe.add([subnetwork(n) for n in "xyz"], set())
    with pytest.raises(PersonaInUseError, match="max_personas=2 leaves no room"):
        wardrobe.add([subnetwork("x"), subnetwork("y")], {"a"})
    assert wardrobe.names == ("a", "b")
    with pytest.raises(OptionError, match="max_personas is 0"):
        Wardrobe(0)


def test_names_taken_and_unknown() -> None:
    wardrobe = Wardrobe(None)
    wardrobe.check_free(["a"])
    with pytest.raises(UnknownPersonaError, match="no persona 'a' here; there are: none"):
        wardrobe.check_known(["a"])
    wardrobe.add([subnetwork("a")], set())
    with pytest.raises(OptionError, match="'a' has been added already"):
        wardrobe.check_free(["b", "a"])
    wardrobe.remove("a")
    assert wardrobe.names == ()


def test_memory_is_what_the_masks_hold() -> None:
    wardrobe = Wardrobe(None)
    wardrobe.add([subnetwork("few", 3), subnetwork("many", 200)], set())
    assert wardrobe.memory() == {"few": 3 * 4, "many": 400 // 8}
