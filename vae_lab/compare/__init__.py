"""Comparing runs: `vae-lab-compare`. Nothing here imports torch, except where images are drawn from models."""
