from __future__ import annotations

import threading

import numpy as np
import pytest

from personae.errors import ArtefactError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.runtime.wardrobe import Memory, Wardrobe, read_shapes, read_source
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


def test_memory_from_counts_alone_is_what_the_masks_hold(artefact, tmp_path) -> None:
    path = tmp_path / "abc.persona"
    dense = Artefact(artefact.model, {"few": subnetwork("few", 3), "many": subnetwork("many", 200)})
    dense.save(path)
    for source in (dense, path, str(path)):
        shapes = read_shapes(source, None)
        found = {name: Memory.of(masks, {"w": 4}) for name, masks in shapes.items()}
        assert found == {"few": Memory(masks=3 * 4, undo=3 * 4), "many": Memory(masks=400 // 8, undo=400 * 4)}
        assert read_shapes(source, "few").keys() == read_shapes(source, ["few"]).keys() == {"few"}
        assert read_shapes(source, ()) == {}
        with pytest.raises(UnknownPersonaError, match="'x'"):
            read_shapes(source, ["few", "x"])
    assert Memory.of(read_shapes(subnetwork("s", 100), None)["s"], {"w": 2}) == Memory(400 // 8, 100 * 2)
    with pytest.raises(ArtefactError):
        read_shapes(tmp_path / "nothing.persona", None)


def test_pins_are_counted_and_keep_personas() -> None:
    wardrobe = Wardrobe(2)
    wardrobe.add([subnetwork("a"), subnetwork("b")], set())
    blend = (("a", 0.5), ("b", 0.5))
    wardrobe.pin(blend)
    wardrobe.pin((("a", 1.0),))
    wardrobe.unpin(blend)
    with pytest.raises(PersonaInUseError, match="'a' is pinned"):
        wardrobe.remove("a")
    wardrobe.add([subnetwork("c")], set())  # 'a' is the least recently used, but pinned
    assert wardrobe.names == ("a", "c")
    with pytest.raises(PersonaInUseError, match="leaves no room"):
        wardrobe.add([subnetwork("d")], {"c"})
    wardrobe.unpin((("a", 1.0),))
    with pytest.raises(OptionError, match="'a' is not pinned"):
        wardrobe.unpin((("a", 1.0),))
    wardrobe.remove("a")
    assert wardrobe.names == ("c",)


def test_a_look_is_pinned_whole_or_not_at_all() -> None:
    wardrobe = Wardrobe(None)
    wardrobe.add([subnetwork("a")], set())
    with pytest.raises(UnknownPersonaError, match="'x'"):
        wardrobe.pin((("a", 0.5), ("x", 0.5)))
    with pytest.raises(OptionError, match="'a' is not pinned"):
        wardrobe.unpin((("a", 1.0),))
    wardrobe.pin((("a", 1.0),))
    with pytest.raises(OptionError, match="'b' is not pinned"):
        wardrobe.unpin((("a", 0.5), ("b", 0.5)))
    wardrobe.unpin((("a", 1.0),))


def test_a_name_that_is_added_again_is_another_edition() -> None:
    wardrobe = Wardrobe(None)
    wardrobe.add([subnetwork("a"), subnetwork("b")], set())
    look = (("a", 0.5), ("b", 1.0))
    first = wardrobe.worn(look)
    assert [(each.strength, each.masks) for each in first] == [(0.5, wardrobe["a"]), (1.0, wardrobe["b"])]
    assert {each.edition for each in first} == wardrobe.editions
    wardrobe.remove("a")
    wardrobe.add([subnetwork("a")], set())
    again = wardrobe.worn(look)
    assert again[0].edition not in {each.edition for each in first}
    assert again[1].edition == first[1].edition
    assert {each.edition for each in again} == wardrobe.editions
    with pytest.raises(UnknownPersonaError, match="'x'"):
        wardrobe.worn((("x", 1.0),))


def test_pins_of_many_threads_add_up() -> None:
    wardrobe = Wardrobe(None)
    wardrobe.add([subnetwork("a")], set())
    look = (("a", 1.0),)

    def play() -> None:
        for _ in range(200):
            wardrobe.pin(look)
            wardrobe.pin(look)
            wardrobe.unpin(look)

    threads = [threading.Thread(target=play) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(800):
        wardrobe.unpin(look)
    wardrobe.remove("a")
