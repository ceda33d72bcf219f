"""Sweeps: many runs from one command, each a process and a folder of its own."""
