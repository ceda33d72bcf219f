"""Whether this process is the first one of a run, or one that a run on several devices started for its further devices.

A run starts its further processes itself. What a launcher or an earlier program left in the environment says nothing
about them: Lightning would believe it, and a process that is not the first one keeps no record.
"""

import os

# Where Lightning finds one of these, it takes the process for one of many.
RANKS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"),
    *("SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK"),
)
FIRST = "VAE_LAB_FIRST_PROCESS"  # its number, for those that it starts


def is_first() -> bool:
    """Whether this is no further process that another one of ours started; a spawned job of a sweep has no rank."""
    return os.environ.get(FIRST) != str(os.getppid()) or "LOCAL_RANK" not in os.environ


def forget_ranks() -> None:
    """Make a first process one of its own: `srun -n4 vae-lab` is four runs. To be called before Lightning's import."""
    if not is_first():
        return
    for name in RANKS:
        os.environ.pop(name, None)
    os.environ[FIRST] = str(os.getpid())
