"""The emulated engine and GPU in virtual time: no I/O, no clock."""
