"""The HTTP API of `zeusd`, Zeus's privileged daemon, over the GPUs and CPUs of an emulated host."""
