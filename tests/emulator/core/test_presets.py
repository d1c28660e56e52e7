from pathlib import Path

import pytest
import yaml

from emulator.core.presets import Card, PresetError, known, load_gpu, load_model, written


def test_what_comes_with_joulegate() -> None:
    assert known("gpu") == ["a100-40g", "h100", "h200"]
    assert known("model") == ["llama-2-70b", "llama-2-7b", "llama-3.1-8b"]


@pytest.mark.parametrize("name", ["a100-40g", "h100", "h200"])
def test_every_figure_has_a_source(name: str) -> None:
    preset = load_gpu(name)
    for section in (preset.card, preset.factors, preset.host):
        assert set(section.sources) == set(type(section).model_fields) - {"sources"}
        assert all(section.sources.values())


def test_other_cards_have_the_factors_that_were_fitted_on_the_h200() -> None:
    h200 = load_gpu("h200")
    for name in ("h100", "a100-40g"):
        assert load_gpu(name).factors == h200.factors
        assert load_gpu(name).factors_of == "h200"
        assert "measured" in load_gpu(name).note


@pytest.mark.parametrize(
    ("name", "weights"), [("llama-2-7b", 6.74e9), ("llama-3.1-8b", 8.03e9), ("llama-2-70b", 68.98e9)]
)
def test_a_model_has_the_published_number_of_weights(name: str, weights: float) -> None:
    assert load_model(name).shape.weight_bytes / 2 == pytest.approx(weights, rel=2e-3)


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(written(load_gpu("h100")), "utf-8")
    assert load_gpu(str(file)) == load_gpu("h100")


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(PresetError, match=r"no gpu preset 'H20': did you mean h200\? There are a100-40g, h100, h200"):
        load_gpu("H20")
    with pytest.raises(PresetError, match="no model preset 'h200'"):
        load_model("h200")


@pytest.mark.parametrize(
    ("figure", "fault"),
    [
        ({"value": 4e12}, "needs a value and a source"),
        ({"value": 4e12, "source": ""}, "needs a value and a source"),
        ({"value": "fast", "source": "a guess"}, "hbm_bytes_per_s: Input should be a valid number"),
        ({"value": -1, "source": "a guess"}, "greater than 0"),
    ],
)
def test_a_wrong_figure_is_named(tmp_path: Path, figure: dict[str, object], fault: str) -> None:
    data = yaml.safe_load(written(load_gpu("h200")))
    data["card"]["hbm_bytes_per_s"] = figure
    assert fault in _fault(tmp_path, data)


def test_an_unknown_figure_is_named(tmp_path: Path) -> None:
    data = yaml.safe_load(written(load_gpu("h200")))
    data["card"]["tensor_flop"] = {"value": 1, "source": "a guess"}
    assert "card.tensor_flop: Extra inputs" in _fault(tmp_path, data)


def test_limits_must_make_sense(tmp_path: Path) -> None:
    data = yaml.safe_load(written(load_gpu("h200")))
    data["card"]["idle_w"]["value"] = 300
    assert "watts must rise" in _fault(tmp_path, data)


def test_what_is_no_preset(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    for text, fault in (("- 1", "no gpu preset: it needs `kind: gpu`"), ("a: [", "cannot be read")):
        file.write_text(text, "utf-8")
        with pytest.raises(PresetError, match=fault):
            load_gpu(str(file))


def test_changed_figures_have_a_new_source() -> None:
    card = load_gpu("h200").card
    changed = card.changed({"idle_w": 130.0}, "measured here")
    assert changed.idle_w == 130
    assert changed.sources == {**card.sources, "idle_w": "measured here"}
    assert isinstance(changed, Card)


def _fault(folder: Path, data: dict[str, object]) -> str:
    file = folder / "wrong.yaml"
    file.write_text(yaml.safe_dump(data), "utf-8")
    with pytest.raises(PresetError) as caught:
        load_gpu(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)
