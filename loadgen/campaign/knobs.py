"""The knobs that a campaign turns: what each is called, its unit, and what kind of thing it changes."""

from dataclasses import dataclass

Value = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Knob:
    """`title` is what an axis says; `default` is what holds where a campaign says nothing (None: the target's own)."""

    title: str
    unit: str = ""
    default: Value = None


KNOBS = {
    # of the load
    "users": Knob("users of each workload", "", 1),
    "arrivals": Knob("arrivals"),  # as `loadgen.arrivals` writes them, in the place of users
    "output_tokens": Knob("output length", "tokens"),
    "input_tokens": Knob("input length", "tokens"),
    "mode": Knob("how a run is sent", "", "calls"),  # as `loadgen.client.Target` has it
    # of the gateway
    "in_flight": Knob("requests in flight at the gate"),
    "policy": Knob("policy"),
    # of the engine, which is started anew for them
    "engine": Knob("engine", "", "vllm"),
    "model": Knob("model", "", "llama-2-7b"),
    "max_num_seqs": Knob("batch size (max_num_seqs)", "", 256),
    "max_num_batched_tokens": Knob("tokens of a step (max_num_batched_tokens)", "tokens", 8192),
    "max_model_len": Knob("context", "tokens"),
    "gpu_memory_utilization": Knob("share of the GPU's memory", "", 0.9),
    "enable_prefix_caching": Knob("prefix caching", "", True),
    # of the machine
    "gpu": Knob("card", "", "h200"),
    "gpus": Knob("cards", "", 1),
    "power_limit_w": Knob("power cap", "W"),
    "sm_mhz": Knob("SM clock", "MHz"),
}
