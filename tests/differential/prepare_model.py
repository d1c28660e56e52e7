"""Makes of a GGUF the folder that vLLM reads; runs in vLLM's environment: `python prepare_model.py GGUF FOLDER`.

vLLM cannot read this GGUF's quantisation on a CPU, so the weights are unpacked to bfloat16 (270 MB).
"""

# pyright: reportMissingImports=false

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def prepare(gguf: Path, folder: Path) -> None:
    """Write tokenizer, configuration and weights into `folder`, which appears only when it is whole."""
    with TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(made)
        unpack = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=unpack)
        model = model.to(torch.bfloat16)
        for quantised in (model.config, "quantization_config"), (model, "hf_quantizer"):
            if hasattr(*quantised):  # else it would be saved as quantised, and refuse to be
                delattr(*quantised)
        model.save_pretrained(made)
        made.rename(folder)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
