"""What identifies the images of a run: a hash of the splits and of every pixel."""

import hashlib

CHUNK = 4096  # images
LENGTH_0_1 = 16


def fingerprint(splits: dict) -> str:
    """Hash what a run trains, validates and tests on, at about 1 GB/s.

    Args:
        splits: `vae_lab.data.Pixels` by name, which share their pixels.

    Returns:
        32 hexadecimal digits: equal if and only if the images and their splits are.
    """
    digest = hashlib.blake2b(digest_size=16)
    for split in splits.values():
        digest.update(split.index.numpy().tobytes())
    for chunk in next(iter(splits.values())).pixels.split(CHUNK):
        digest.update(chunk.flatten().numpy())
    return digest.hexdigest()


def fingerprint_0_1(splits: dict) -> str:
    """The hash in checkpoints of release 0.1, which looked at a few hundred images; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(split.index.numpy().tobytes())
        chosen = split.index[:: max(1, len(split) // 100)]
        digest.update(split.pixels[chosen].numpy().tobytes())
    return digest.hexdigest()[:LENGTH_0_1]
