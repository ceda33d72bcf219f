"""A sweep's jobs are composed as Hydra composes them alone."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vae_lab.config.composing import chosen
from vae_lab.sweep.composing import Composer

CONF = {
    "config.yaml": "defaults: [{model: mlp}, _self_, {experiment: null}]\n"
    "seed: 0\nname: null\nlogger: {dir: here, tags: []}\nhydra: {run: {dir: 'runs/${now:%f}'}}",
    "model/mlp.yaml": "latent_dim: 16\nhidden_dims: [8, '${..latent_dim}']",
    "model/conv.yaml": "latent_dim: 4\nseed: ${seed}",
    "experiment/large.yaml": "# @package _global_\ndefaults: [{override /model: conv}]\nmodel: {latent_dim: 64}",
}
JOBS = [
    ["model.latent_dim=3", "seed=1e-2", "name='a b,c=d'", "seed=7"],
    ["seed=8", "model.latent_dim=${seed}", "model.hidden_dims=[1,[2,'x y'],{c:'${seed}'}]"],
    ["+new={a:[1,{b:2}],c:null}", "++seed=4", "~logger.tags", "~logger.dir=here", "+new.d=${seed}", "new.c=3"],
    ["model.latent_dim=2", "model={latent_dim:3}", "++model={mine:4}"],  # a dict is a value, also for a group
    ["model.latent_dim=5", "experiment=large", "~logger"],
    ["~model", "+model@other=conv", "other.latent_dim=1"],
    ["seed=3", "hydra.job.config.override_dirname.exclude_keys=[seed]", "hydra={job:{chdir:true}}", "name=x"],
]
REFUSED = [
    ["seed=3", "nope=1"],
    ["+seed=1"],
    ["~nope"],
    ["seed.x=1"],
    ["seed=1,2"],
    ["seed=choice(1,2)"],
    ["seed=[0"],
    ["seed@x=1"],
    ["model.nope=1", "model=nope"],  # the option is what Hydra tells first
    ["++model=mlp"],
    ["~model=conv"],
]


@pytest.fixture
def conf(tmp_path) -> Path:
    for name, text in CONF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_each_job_has_the_config_that_hydra_gives(conf):
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        loader = GlobalHydra.instance().config_loader()
        sweep = compose("config", ["hydra.job.num=0", "hydra/job_logging=none"], return_hydra_config=True)
        assert sweep.hydra.run.dir  # the time in it is that of all jobs
        shared = Composer(loader, sweep)
        for job in JOBS:
            alone, config = loader.load_sweep_config(sweep, job), shared.compose(*job)
            assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(alone), job
            resolved = []
            for one in (alone, config):
                with chosen(one):
                    resolved.append(OmegaConf.to_container(one, resolve=True))
            assert resolved[0] == resolved[1], job
            assert shared.compose(*job) == config, job  # nothing of a job is in what they share
        for job in REFUSED:
            with pytest.raises(HydraException) as alone:
                loader.load_sweep_config(sweep, job)
            with pytest.raises(HydraException) as refused:
                shared.compose(*job)
            assert (refused.type, str(refused.value)) == (alone.type, str(alone.value)), job
