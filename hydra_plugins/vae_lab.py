"""Hydra takes plugins from the package `hydra_plugins` only: these are the ones of `vae_lab/sweep/`."""

from vae_lab.sweep import launcher, search


class SweepLauncher(launcher.SweepLauncher):
    """Each job of a sweep in a process of its own."""


class OptunaSweeper(search.OptunaSweeper):
    """A search in which each trial is a job of the sweep."""
