"""What a key is that an older config lacks: configs are compared as if `conf/` had got it, or lost it, since."""

import pytest
from composed import composed
from omegaconf import OmegaConf

from vae_lab.compare.runs import find_runs
from vae_lab.config.defaults import changes, settings_of
from vae_lab.runs.folder import RunFolder


def run_of(folder, lacks: list[str], *overrides: str):
    """A run folder whose config lacks some keys."""
    cfg = composed(*overrides)
    choices = {"callbacks": "default", "trainer": "default", "experiment": None, "local": "default"}
    for key in lacks:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        OmegaConf.set_struct(node, False)
        del node[name]
    chosen = (override.partition("=") for override in overrides)
    choices |= {key: value for key, _, value in chosen if key in choices}
    RunFolder(folder).write_config(
        config=cfg, choices=OmegaConf.create(choices), overrides=OmegaConf.create(list(overrides))
    )
    return folder


@pytest.mark.parametrize(
    ("lacks", "then", "now", "changed"),
    [
        (["trainer.detect_anomaly"], [], [], []),  # as Lightning does without it
        (["optimizer.betas", "optimizer.lr"], [], [], []),  # as torch does
        (["find_lr", "posterior", "metrics.mse", "dataset.flip"], [], [], []),  # of no class, or a whole part
        (["model.encoder.hidden_dims"], ["model.hidden_dims=[8]"], ["model.hidden_dims=[8]"], []),  # a reference
        (["trainer.detect_anomaly"], [], ["trainer.detect_anomaly=true"], ["trainer.detect_anomaly"]),
        ([], ["optimizer.lr=0.002"], [], ["optimizer.lr"]),  # the default of then
        ([], [], ["loss.KLD_weight=1", "dataset.val_size=0.10", "data_root=/elsewhere"], []),
        ([], ["~callbacks.summary"], [], ["callbacks.summary._target_", "callbacks.summary.max_depth"]),
        ([], ["callbacks.summary=null"], [], ["callbacks.summary", "callbacks.summary._target_",
                                              "callbacks.summary.max_depth"]),
        ([], ["callbacks.summary.max_depth=3"], ["~callbacks.summary.max_depth"], ["callbacks.summary.max_depth"]),
    ],
)  # fmt: skip
def test_a_key_that_is_new_or_gone_is_at_its_default(tmp_path, lacks, then, now, changed):
    folder = run_of(tmp_path, lacks, *then)
    assert sorted(changes(folder, settings_of(composed(*now)))) == changed


def test_what_another_option_brings_is_a_difference(tmp_path):
    folder = run_of(tmp_path, [], "callbacks=default")
    found = changes(folder, settings_of(composed("callbacks=early_stopping")))
    assert set(found) >= {"callbacks.early_stopping._target_", "callbacks.early_stopping.patience"}


def test_what_nobody_knows_is_a_difference(tmp_path):
    folder = run_of(tmp_path, ["find_lr", "trainer.detect_anomaly"])
    path = folder / ".hydra" / "choices.yaml"
    path.write_text(path.read_text().replace("trainer: default", "trainer: ../../secret"))
    assert set(changes(folder, settings_of(composed()))) == {"find_lr"}


def test_a_key_that_is_new_splits_no_comparison(tmp_path):
    for name, lacks, then in (("old", ["find_lr", "trainer.detect_anomaly", "callbacks.summary"], []),
                              ("new", [], []), ("other", [], ["model=conv"])):  # fmt: skip
        run_of(tmp_path / name, lacks, *then)
        RunFolder(tmp_path / name).write_result({"val/elbo": 1.0})
        (tmp_path / name / "status.json").write_text('{"state": "completed"}')
    new, old, other = find_runs([tmp_path])[0]
    assert old.settings == new.settings
    assert "model.encoder.channels" not in new.settings
