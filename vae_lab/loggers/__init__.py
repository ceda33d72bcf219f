"""Copies of a run's record for other programs: W&B, TensorBoard, CSV. The files of the run stay the record of truth."""
