"""Comparing runs: `vae-lab-compare`. Nothing here imports torch, except where images are drawn from models."""

import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """This room, which is called as the function of its name: `vae_lab.compare(folders)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `vae_lab.compare.compared.compare`."""
        from vae_lab.compare.compared import compare

        return compare(*args, **kwargs)


sys.modules[__name__].__class__ = Room
