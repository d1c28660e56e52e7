import pytest

from emulator.core.gpu import Gpu
from emulator.core.presets import GpuPreset, Model, ModelPreset, load_gpu, load_model


@pytest.fixture
def h200() -> GpuPreset:
    return load_gpu("h200")


@pytest.fixture
def model() -> ModelPreset:
    return load_model("llama-2-7b")


@pytest.fixture
def llama(model: ModelPreset) -> Model:
    return model.shape


@pytest.fixture
def gpu(h200: GpuPreset, llama: Model) -> Gpu:
    return Gpu(h200.card, h200.factors, llama)
