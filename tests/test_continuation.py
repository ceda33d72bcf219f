"""What training saved is continued from; tests/faults/test_misfit_checkpoints.py has what is not."""

import pytest

from vae_lab.continuation import check_like
from vae_lab.instantiate import CLASSES
from vae_lab.runs import Run
from vae_lab.train import train

EARLY = (
    "+callbacks.early={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,"
    "check_on_train_epoch_end:false}"
)
OTHERS = ["~optimizer.betas", "~optimizer.eps", "~optimizer.weight_decay", "~optimizer.fused"]
CHANGES = {
    "Adam": ["+optimizer.amsgrad=true", "optimizer/schedule=step", "optimizer.lr=1"],
    "SGD": [*OTHERS, "+optimizer.momentum=0.9"],
}
OPTIMIZERS = [name for name in CLASSES["torch.optim"] if name != "Muon"]  # which takes no biases


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_trusted_optimizer_continues(name, config):
    cfg = config(f"optimizer._target_=torch.optim.{name}", *CHANGES.get(name, OTHERS), "trainer.max_steps=4", EARLY)
    train(cfg)
    cfg.resume, cfg.trainer.max_steps = cfg.run_dir, 6
    train(cfg)
    assert Run(cfg.run_dir).result["steps"] == 6


def test_what_differs_is_named():
    example = {"a": [1, 2.0], "b": {"c": None}}
    check_like("x", {"a": [3, 4], "b": {"c": None}}, example)
    for found, message in (
        ({"a": [3, 4]}, r"x must hold a, b, got \['a'\]"),
        ({"a": [-3, 4], "b": {"c": None}}, r"x\.a\.0 must be 1, got -3"),
        ({"a": [3], "b": {"c": None}}, r"x\.a must be a list of 2, got a list of 1"),
        ({"a": [True, 4], "b": {"c": None}}, r"x\.a\.0 must be 1, got True"),
        ({"a": [3, 4], "b": {"c": "text"}}, r"x\.b\.c must be None, got a str"),
    ):
        with pytest.raises(ValueError, match=message):
            check_like("x", found, example)
