"""A Hydra-configured experiment runner for variational autoencoders. The rooms of the house, in the order of reading:

models/      encoders and decoders, posteriors, priors, likelihoods, and `vae.py`, which binds them
objectives/  what is minimised, one class for each
metrics/     every number that is reported: the catalogue, and what computes them
data/        sources of images, decoding, caches, splits, batches
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
are in `__main__.py`, the failures that a user can mend in `errors.py`.
"""


def load_run(run_dir, checkpoint="best"):
    """Load a trained model and its config from a run folder; see `vae_lab.runs.trained.load_run`."""
    from vae_lab.runs.trained import load_run  # torch is imported only when a model is wanted

    return load_run(run_dir, checkpoint)
