"""Copies of a run's record for other programs. The files of the run stay the record of truth.

wandb          Lightning's logger for W&B, as the run sees it
wandb_process  the process of W&B, started and ended from here
wandb_worker   what happens in it: where W&B is told
local          a CSV table, events for TensorBoard
guarded        any logger whose failure is one warning
"""
