"""A Hydra-configured experiment runner for variational autoencoders."""


def load_run(run_dir, checkpoint="best"):
    """Load a trained model and its config from a run folder; see `vae_lab.runs.trained.load_run`."""
    from vae_lab.runs.trained import load_run  # torch is imported only when a model is wanted

    return load_run(run_dir, checkpoint)
