"""Load: the workloads of the paper, as Locust users."""
