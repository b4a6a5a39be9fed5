"""Finds, converts, inspects and caches checkpoints."""
