"""Joules of a request as a function of its lengths: E = a·in + b·out + c·in·out (Wilkins et al., arXiv 2407.04014)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Millijoules a prompt token, an output token, and a pair of one of each; `r2` is the share that it explains.

    As the authors have it there is no constant: no tokens cost nothing. R² is about the mean of the joules.
    """

    prompt_mj: float
    output_mj: float
    pair_mj: float
    r2: float
    n: int

    def joules(self, prompt_tokens: float, output_tokens: float) -> float:
        pair = self.pair_mj * prompt_tokens * output_tokens
        return (self.prompt_mj * prompt_tokens + self.output_mj * output_tokens + pair) / 1e3


def fit(prompt_tokens: Sequence[float], output_tokens: Sequence[float], joules: Sequence[float]) -> EnergyModel:
    """Least squares. Raises ValueError for lengths that cannot tell the three terms apart."""
    prompts, outputs, seen = (np.asarray(values, float) for values in (prompt_tokens, output_tokens, joules))
    terms = np.stack([prompts, outputs, prompts * outputs], axis=1)
    scale = np.abs(terms).max(axis=0, initial=0.0)
    if len(seen) < 4 or not scale.all() or np.linalg.matrix_rank(terms / scale) < 3:
        raise ValueError("a model of both lengths needs four requests or more, of several lengths in and out")
    found = np.linalg.lstsq(terms / scale, seen, rcond=None)[0] / scale
    spread = float(np.sum((seen - seen.mean()) ** 2))
    rest = float(np.sum((seen - terms @ found) ** 2))
    prompt_j, output_j, pair_j = (float(value) for value in found)
    return EnergyModel(1e3 * prompt_j, 1e3 * output_j, 1e3 * pair_j, 1 - rest / spread if spread else 1.0, len(seen))
