"""Features of the layers, and probes that read classes off them."""
