"""What each key of a config is for."""

import pytest

from vae_lab.config.roles import Role, is_aside, is_identity, is_of_images, is_weight, keys, may_change


@pytest.mark.parametrize(
    ("of", "key", "expected"),
    [
        (is_identity, "latent_dim", True),
        (is_identity, "seed", True),
        (is_identity, "trainer", True),
        (is_identity, "trainer.max_epochs", True),
        (is_identity, "trainer.log_every_n_steps", False),
        (is_identity, "dataset.num_workers", False),
        (is_identity, "dataset.root", True),
        (is_identity, "logger.wandb.name", False),
        (is_identity, "hydra/launcher", False),
        (is_identity, "run_dir", False),
        (is_identity, "sweeper", True),
        (may_change, "trainer.max_epochs", True),
        (may_change, "trainer.max_epoch", False),
        (may_change, "callbacks.gallery.num_images", True),
        (may_change, "run_name", True),
        (may_change, "optimizer.lr", False),
        (is_aside, "seed", True),
        (is_aside, "resume", True),
        (is_aside, "callbacks.pruning.number", True),
        (is_aside, "callbacks.early_stopping.patience", False),
        (is_aside, "trainer.max_epochs", False),
        (is_of_images, "dataset.val_size", True),
        (is_of_images, "dataset.source.root", False),
        (is_of_images, "model.channels", False),
        (is_weight, "loss.KLD_weight", True),
        (is_weight, "objective.free_bits", True),
        (is_weight, "loss.likelihood._target_", False),
    ],
)
def test_a_key_has_the_roles_of_what_it_lies_in(of, key, expected):
    assert of(key) == expected


def test_an_export_holds_what_rebuilds_the_model_and_its_images():
    shared = keys(Role.SHARED)
    assert {"latent_dim", "dataset", "model", "posterior", "prior", "loss", "objective"} <= set(shared)
    assert not {"data_root", "trainer", "optimizer", "logger", "run_dir"} & set(shared)
