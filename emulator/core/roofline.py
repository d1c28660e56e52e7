"""What a step asks of one card: seconds of memory, of arithmetic and of neither, and the joules of the work itself."""

from dataclasses import dataclass

from emulator.core.presets import Card, Factors, Model
from emulator.core.step import StepWork


@dataclass(slots=True)
class Demand:
    """A step's demand on one card, clocks aside.

    A step takes `overhead_s` and the longer of `memory_s` and `compute_s`, each at the highest clock. `hbm_j` does not
    depend on the clock; `core_j`, at the highest clock, goes with the square of the voltage.
    """

    overhead_s: float
    memory_s: float
    compute_s: float
    hbm_j: float
    core_j: float


class Roofline:
    """A model on `cards` cards of a kind, weights and heads split evenly: each does its part, and all wait for two
    all-reduces a layer (ring: 2 (n-1)/n of the activations over the link, and its latency).
    """

    def __init__(self, card: Card, factors: Factors, model: Model, cards: int = 1) -> None:
        self._weight_bytes = (model.layer_weights + model.head_weights) * model.dtype_bytes / cards
        self._kv_bytes = model.kv_bytes_per_token / cards
        self._l2_share = factors.l2_share
        self._token_flops = 2 * model.layer_weights / cards
        self._head_flops = 2 * model.head_weights / cards
        self._attended_flops = 4 * model.layers * model.heads * model.head_dim / cards
        self._byte_s = 1 / (card.hbm_bytes_per_s * factors.hbm_share)
        flops_per_s = card.tensor_flops_per_s * card.sm_mhz_max / card.tensor_mhz * factors.flops_share
        self._flop_s = 1 / flops_per_s
        self._layers_s = model.layers * factors.layer_s
        self._sequence_s = factors.sequence_s
        self._byte_j = factors.hbm_j_per_byte
        self._attention_j = factors.attention_j_per_byte
        self._flop_j = factors.flop_j
        self._token_link_s = 0.0
        if cards > 1:
            self._layers_s += 2 * model.layers * card.link_latency_s
            reduced_bytes = 2 * model.layers * model.hidden * model.dtype_bytes * 2 * (cards - 1) / cards
            self._token_link_s = reduced_bytes / card.link_bytes_per_s

    def demand(self, work: StepWork) -> Demand:
        tokens = work.prefill_tokens + work.decode_sequences
        sequences = work.prefill_sequences + work.decode_sequences
        decode_bytes = self._kv_bytes * (work.decode_context - self._l2_share * work.decode_shared)
        moved_bytes = self._weight_bytes + decode_bytes + self._kv_bytes * (work.prefill_context + tokens)
        flops = (
            self._token_flops * tokens
            + self._head_flops * sequences
            + self._attended_flops * (work.prefill_attended + work.decode_context)
        )
        return Demand(
            self._layers_s + self._sequence_s * sequences + self._token_link_s * tokens,
            moved_bytes * self._byte_s,
            flops * self._flop_s,
            moved_bytes * self._byte_j,
            decode_bytes * self._attention_j + flops * self._flop_j,
        )
