"""Independent random streams derived from one seed.

Every random decision (the order of an epoch, the noise of a batch, the split of a dataset) has its own stream, named by
numbers. A stream depends on nothing that happened before, so a resumed run draws what the first would have drawn.
"""

import numpy as np
import torch

ORDER, TRAIN, VALIDATION, SPLIT, BINARIZE, EXAMPLES = range(6)  # the first number of a stream's name


def derive_seed(*name: int) -> int:
    """Hash a stream's name, non-negative integers, to a seed in [0, 2**63).

    Names of one length that differ give unrelated seeds, unlike seed + epoch, where (0, 1) and (1, 0) would be one
    stream.
    """
    return int(np.random.SeedSequence(name).generate_state(1, np.uint64)[0] >> 1)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generator of the CPU and that of a device.

    As `torch.manual_seed`, which also formats the call stack for each kind of device that it does not find, and that
    takes longer than a step of a small model.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
