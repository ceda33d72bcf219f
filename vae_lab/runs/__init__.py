"""The run folder: its files, checkpoints, resume, signals, result, and a trained model read back from it."""
