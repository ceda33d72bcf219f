"""Images: sources, decoding, caches, splits, batches. Nothing here knows of models or runs."""
