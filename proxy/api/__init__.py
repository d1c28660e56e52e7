"""The JSON API beside the data plane."""
