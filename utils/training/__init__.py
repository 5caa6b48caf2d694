"""Flags, an epoch, where a run stands, its folder, its checkpoints."""
