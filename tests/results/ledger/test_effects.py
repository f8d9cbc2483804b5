import json
from dataclasses import replace
from pathlib import Path

import pytest

from layers import OvertoneError, UsageError
from results.ledger.effects import EffectsLibrary
from results.ledger.store import Store
from spaces import BlockConfig
from spaces.effects import Effect, Effects

RECORD = {
    "weights_sha256": "ab",
    "data_fingerprint": "cd",
    "init": "calibrated",
    "saliency": "magnitude",
    "minimum_templates": 8,
    "seed": 0,
    "network": {"structure_sha256": "ef", "outputs": [1.0, -2.0]},
    "granularity": "stage",
    "epochs": 5,
}
EMPTY = Effects(loss=0.1, score=0.9, images=64, calibration_images=32, seed=0, reference_s=1.0)


def _effect(block: str, bits: int) -> Effect:
    measured = {"loss": 0.2, "divergence": 0.1, "divergence_error": 0.01, "score": 0.8, "seconds": 1.0}
    return Effect(block=block, config=BlockConfig(bits=bits), **measured)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_studies_of_one_network_share_a_library_whatever_else_they_ask_for(store: Store) -> None:
    library = EffectsLibrary(store, RECORD)
    assert library.read() is None
    library.write(replace(EMPTY, effects=(_effect("layer1", 4),)), {"seconds": 2})
    other = EffectsLibrary(store, {**RECORD, "granularity": "layer", "epochs": 1, "name": "other"})
    both = other.write(replace(EMPTY, effects=(_effect("layer1.0", 4), _effect("layer1", 4))), {})
    assert [effect.block for effect in both.effects] == ["layer1.0", "layer1"]
    assert library.read() == (both, {})
    assert other.write(replace(EMPTY, effects=(_effect("layer1", 3),)), {"n": 1}).effects[0] == _effect("layer1", 3)
    assert len(library.read()[0].effects) == 3


@pytest.mark.parametrize("key", ["weights_sha256", "data_fingerprint", "init", "saliency", "minimum_templates", "seed"])
def test_a_study_of_others_has_a_library_of_its_own(store: Store, key: str) -> None:
    EffectsLibrary(store, RECORD).write(EMPTY, {})
    assert EffectsLibrary(store, {**RECORD, key: "other"}).read() is None


def test_a_library_of_other_weights_data_or_code_is_refused(store: Store) -> None:
    library = EffectsLibrary(store, RECORD)
    library.write(EMPTY, {})
    other = EffectsLibrary(store, {**RECORD, "weights_sha256": "zz"})
    (path,) = (store.local_root / "effects").iterdir()
    path.rename(store.local_root / other.name)
    with pytest.raises(UsageError, match=r"must be of the study's own network and data: its weights_sha256 differs$"):
        other.read()
    library.write(EMPTY, {})
    edited = {**RECORD, "network": {**RECORD["network"], "outputs": [1.0, -2.5]}}
    with pytest.raises(UsageError, match=r"its network \(outputs\) differs$"):
        EffectsLibrary(store, edited).read()
    rounded = {**RECORD, "network": {**RECORD["network"], "outputs": [1.0, -2.0001]}}
    assert EffectsLibrary(store, rounded).read() == (EMPTY, {})


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", json.dumps({"measured_on": {}, "notes": 1, "effects": 3}).encode()]
)
def test_a_damaged_library_is_told_in_one_sentence(store: Store, content: bytes) -> None:
    library = EffectsLibrary(store, RECORD)
    store.write_bytes(library.name, content)
    with pytest.raises(OvertoneError, match=r"is no effects library"):
        library.read()


def test_effects_on_other_images_are_not_mixed(store: Store) -> None:
    library = EffectsLibrary(store, RECORD)
    library.write(replace(EMPTY, images=32, effects=(_effect("layer1", 4),)), {})
    assert library.write(replace(EMPTY, effects=(_effect("layer2", 4),)), {}).effects == (_effect("layer2", 4),)
