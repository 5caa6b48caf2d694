"""Devices and processes, batch norm over processes, compiling, memory, seeds."""
