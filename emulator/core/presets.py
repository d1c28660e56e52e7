"""Cards, hosts and models as data: each figure of a preset says where it is from.

A preset is a YAML file, one of `emulator/presets/` by name or the user's own by path.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class PresetError(ValueError):
    """A preset that is not there or not right, or a model that cannot run on a card: one line to act on."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Strict):
    """Figures that are written as `{value, source}` each; `sources` keeps where they are from."""

    sources: Mapping[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def part_values_from_sources(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "sources" in data:
            return data
        values, sources = {}, {}
        for key, figure in data.items():
            if not isinstance(figure, Mapping) or set(figure) != {"value", "source"} or not figure["source"]:
                raise ValueError(f"{key} needs a value and a source: {{value: …, source: …}}, not {figure!r}")
            values[key], sources[key] = figure["value"], str(figure["source"])
        return {**values, "sources": sources}

    def written(self) -> dict[str, dict[str, Any]]:
        """The figures as they stand in a file."""
        return {key: {"value": value, "source": self.sources[key]} for key, value in self.model_dump().items()}

    def changed(self, values: Mapping[str, float], source: str) -> Self:
        """The same figures with some replaced, which are then from `source`."""
        sources = {**self.sources, **dict.fromkeys(values, source)}
        return type(self).model_validate({**self.model_dump(), **values, "sources": sources})


class Card(Sourced):
    """What a data sheet says of a card, and what is assumed of its silicon.

    The voltage falls in proportion to the clock, by `voltage_slope` of itself from the highest clock to zero, as far as
    `voltage_floor` (both shares of the voltage at the highest clock). The power cap acts on the mean over
    `control_s`. All-reduces between cards move over `link_bytes_per_s` (one direction) and wait `link_latency_s`.
    """

    memory_bytes: Positive
    hbm_bytes_per_s: Positive  # at memory_mhz
    memory_mhz: Count
    l2_bytes_per_clock: Positive  # what the L2 cache passes on to the SMs
    tensor_flops_per_s: Positive  # dense, 16 bits, at tensor_mhz
    tensor_mhz: Count
    sm_mhz_min: Count
    sm_mhz_max: Count
    sm_mhz_step: Count
    power_min_w: Positive
    power_max_w: Positive
    power_default_w: Positive
    idle_w: Positive  # weights loaded, nothing running
    voltage_slope: Share
    voltage_floor: Share
    control_s: NotNegative
    link_bytes_per_s: Positive
    link_latency_s: NotNegative

    @model_validator(mode="after")
    def ranges_are_ranges(self) -> Self:
        if not self.sm_mhz_min <= self.sm_mhz_max:
            raise ValueError(f"sm_mhz_min {self.sm_mhz_min} is above sm_mhz_max {self.sm_mhz_max}")
        if not self.idle_w < self.power_min_w <= self.power_default_w <= self.power_max_w:
            raise ValueError("watts must rise: idle_w < power_min_w <= power_default_w <= power_max_w")
        return self


class Factors(Sourced):
    """How well kernels use a card, and what they cost it: what a calibration fits, and what carries to other models.

    `hbm_share` and `flops_share` are shares of the data sheet's bandwidth and FLOP/s; `layer_s` is lost at the kernel
    boundaries of a layer; `sequence_s` is the engine's own time for a sequence of a step; `l2_share` is the part of
    reads of a prefix, shared by sequences of the step, that stays on the chip. `active_share` of the default power
    limit is drawn while anything runs, at the highest clock; `hbm_j_per_byte` is moved data, `attention_j_per_byte` the
    work that decode attention does on a byte of KV cache, `flop_j` a floating-point operation. `cap_share` of the power
    limit is what the card's regulator aims at. `request_s` and `prompt_token_s` are the way to the engine: HTTP, JSON.
    """

    hbm_share: Share
    flops_share: Share
    layer_s: NotNegative
    sequence_s: NotNegative
    l2_share: Annotated[float, Field(ge=0, le=1)]
    active_share: Annotated[float, Field(ge=0, le=1)]
    hbm_j_per_byte: NotNegative
    attention_j_per_byte: NotNegative
    flop_j: NotNegative
    cap_share: Share
    request_s: NotNegative
    prompt_token_s: NotNegative


class HostFigures(Sourced):
    """The machine around the cards: watts of its CPUs and its memory. See `emulator.core.host`."""

    cpu_idle_w: NotNegative
    cpu_core_w: NotNegative
    engine_cores: NotNegative
    request_core_s: NotNegative
    prompt_token_core_s: NotNegative
    output_token_core_s: NotNegative
    dram_idle_w: NotNegative
    dram_active_w: NotNegative


class GpuPreset(Strict):
    kind: Literal["gpu"]
    name: str
    title: str  # as NVML names it
    note: str
    card: Card
    factors: Factors
    factors_of: str  # the card that the factors were fitted on
    host: HostFigures


class Model(Sourced):
    """A dense decoder-only transformer with gated feed-forward layers, by its published dimensions."""

    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    intermediate: Count
    vocab: Count
    max_model_len: Count
    dtype_bytes: Count

    @model_validator(mode="after")
    def heads_share_evenly(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    @property
    def layer_weights(self) -> int:
        """Weights of the matrix products of all layers: each is two FLOPs a token."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the language-model head."""
        return self.hidden * self.vocab

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take: layers, head and embedding."""
        return (self.layer_weights + 2 * self.head_weights) * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


class ModelPreset(Strict):
    kind: Literal["model"]
    name: str
    title: str
    shape: Model


Kind = Literal["gpu", "model"]
P = TypeVar("P", GpuPreset, ModelPreset)


def load_gpu(name_or_path: str) -> GpuPreset:
    """The card's preset; where `factors` or `host` is a name, those of that preset. Raises PresetError."""
    data = _read(name_or_path, "gpu")
    data.setdefault("factors_of", data["factors"] if isinstance(data.get("factors"), str) else data.get("name"))
    for section in ("factors", "host"):
        if isinstance(lender := data.get(section), str):
            data[section] = _read(lender, "gpu").get(section)
    return _checked(GpuPreset, data, name_or_path)


def load_model(name_or_path: str) -> ModelPreset:
    """The model's preset. Raises PresetError."""
    return _checked(ModelPreset, _read(name_or_path, "model"), name_or_path)


def known(kind: Kind) -> list[str]:
    """Names of the presets that come with Joulegate."""
    return sorted(name for name, data in _shipped().items() if data["kind"] == kind)


def written(preset: GpuPreset) -> str:
    """The preset as a file that `load_gpu` reads."""
    data = preset.model_dump(exclude={"card", "factors", "host"})
    data |= {section: getattr(preset, section).written() for section in ("card", "factors", "host")}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    files = (entry for entry in (resources.files("emulator") / "presets").iterdir() if entry.name.endswith(".yaml"))
    return {file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text("utf-8")) for file in files}


def _read(name_or_path: str, kind: Kind) -> dict[str, Any]:
    names = known(kind)
    if name_or_path in names:
        return dict(_shipped()[name_or_path])
    file = Path(name_or_path)
    if not file.is_file():
        near = difflib.get_close_matches(name_or_path.lower(), names, 1, 0.4)
        meant = f"did you mean {near[0]}? " if near else ""
        raise PresetError(f"no {kind} preset {name_or_path!r}: {meant}There are {', '.join(names)}, or give a file")
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PresetError(f"{name_or_path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise PresetError(f"{name_or_path} is no {kind} preset: it needs `kind: {kind}`")
    return data


def _checked(preset: type[P], data: dict[str, Any], origin: str) -> P:
    try:
        return preset.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise PresetError(f"preset {origin}: {place}: {fault['msg'].removeprefix('Value error, ')}") from None
