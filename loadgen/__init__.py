"""Load: the workloads of the paper and yours, one schedule, and two drivers: HTTP and virtual time."""
