"""Images: sources, decoding, caches, splits, batches. Nothing here knows of models or runs.

A source is built from the settings of its option in `conf/dataset/`, without touching a file. `read()` gives
`decoding.Images`: all images as bytes (N, C, H, W), their labels, and how many at the end are the official test and
validation split. `batches.ImageData` splits them; a `batches.Split` gathers each `Batch(x, y)`.
"""
