"""A Hydra-configured experiment runner for variational autoencoders. The rooms of the house, in the order of reading:

models/      encoders and decoders, posteriors with their KL, priors, likelihoods, and `vae.py`, which binds them
objectives/  what is minimised, one class for each
metrics/     every number that is reported: the catalogue with their units, and what computes them
data/        sources of images, decoding, caches, splits, and the batches gathered from them
training/    from a config to a trained model: `train.py` reads top to bottom
runs/        the run folder: files, checkpoints, resume, signals, result, export
evaluation/  trained runs measured on the test split, and their pictures
loggers/     W&B, TensorBoard and CSV: copies of the record
config/      from YAML to checked objects, and from errors to one line
sweep/       many runs from one command: launcher, jobs, processes, search, table
compare/     runs to groups to tables, figures and a report
reproduce/   numbers to reach, closed forms and published ones, and their bands
play/        the playground: trained runs in a browser

`conf/` has a folder for each group of the config; an option there names a class in the room of that group. The commands
are in `__main__.py`, what a notebook calls in `api.py`, the failures that a user can mend in `errors.py`.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab import compare
    from vae_lab.api import compose, load_run, train

__all__ = ["compare", "compose", "load_run", "train"]
LOCK = Lock()  # of what is imported later


def __getattr__(name: str) -> Any:
    """Import what is public only when it is wanted: torch takes seconds."""
    if name == "compare":
        return import_module("vae_lab.compare")
    if name in __all__:
        return getattr(import_module("vae_lab.api"), name)
    raise AttributeError(f"module 'vae_lab' has no attribute {name!r}")


class Later(ModuleType):
    """A module that is imported only when something in it is wanted which is not given here.

    Args:
        name: of the module.
        given: what there is without its import.
    """

    def __init__(self, name: str, **given: Any):
        super().__init__(name)
        vars(self).update(given, __spec__=ModuleSpec(name, None))

    def __getattr__(self, name: str) -> Any:
        with LOCK:
            if sys.modules.get(self.__name__) is self:
                if name.startswith("__") and name not in ("__path__", "__all__"):  # who looks around does not want it
                    raise AttributeError(f"module {self.__name__!r} is not imported yet")
                del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)

    def __reduce__(self):
        return import_module, (self.__name__,)


def hamming(*size: Any) -> Any:
    """SciPy's, at its old place, where TorchMetrics would put it."""
    return import_module("scipy.signal.windows").hamming(*size)


# TorchMetrics, which Lightning imports, imports it for that function only: a sixth of the time of all imports.
sys.modules.setdefault("scipy.signal", Later("scipy.signal", hamming=hamming))
