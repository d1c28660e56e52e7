"""What one engine step computes, and what it costs: the seam between the scheduler and the cost model."""

from dataclasses import dataclass


@dataclass(slots=True)
class StepWork:
    """The work of one step: a sum over its sequences, so that any coalition of them has work of its own.

    `prefill_attended` is the sum, over the prompt tokens computed in the step, of the tokens that each attends to;
    `decode_context` is the sum of the context lengths of the sequences that decode (KV entries read).
    """

    prefill_sequences: int = 0  # sequences of which a chunk of prompt is computed
    prefill_tokens: int = 0
    prefill_attended: int = 0
    prefill_context: int = 0  # KV entries that those chunks read: the context length at each chunk's end, summed
    decode_sequences: int = 0  # one output token each
    decode_context: int = 0
    decode_shared: int = 0  # of decode_context, what other sequences of the step read too: prefixes they have in common

    def __add__(self, other: "StepWork") -> "StepWork":
        return StepWork(
            self.prefill_sequences + other.prefill_sequences,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_attended + other.prefill_attended,
            self.prefill_context + other.prefill_context,
            self.decode_sequences + other.decode_sequences,
            self.decode_context + other.decode_context,
            self.decode_shared + other.decode_shared,
        )


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took on all GPUs of the engine together."""

    seconds: float
    joules: float
    sm_mhz: float  # the clock that held during the step, after lock and cap
    capped: bool  # the power cap, and not a lock or the maximum, set that clock
