"""Independent random streams derived from one seed.

Every random decision (the order of an epoch, the noise of a batch, the split of a dataset) has its own stream, named by
numbers. A stream depends on nothing that happened before, so a resumed run draws what the first would have drawn.
"""

import numpy as np

ORDER, TRAIN, VALIDATION, SPLIT, BINARIZE = range(5)  # the first number of a stream's name


def derive_seed(*name: int) -> int:
    """Hash a stream's name, non-negative integers, to a seed in [0, 2**63).

    Names of one length that differ give unrelated seeds, unlike seed + epoch, where (0, 1) and (1, 0) would be one
    stream.
    """
    return int(np.random.SeedSequence(name).generate_state(1, np.uint64)[0] >> 1)
