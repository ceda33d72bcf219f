"""A checkpoint in which only what training reads has another form than training gives it."""

from pathlib import Path

import pytest
import torch

from vae_lab import load_run
from vae_lab.errors import RunError
from vae_lab.runs.continuation import check_continuation
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build

pytestmark = pytest.mark.fault


def optimizer(content):
    return content["optimizer_states"][0]


def moments(change):
    """Change the running means of the gradients, of every parameter."""

    def misfit(content):
        for state in optimizer(content)["state"].values():
            state.update(exp_avg=change(state["exp_avg"]), exp_avg_sq=change(state["exp_avg_sq"]))

    return misfit


def filled_means(**changes):
    means = {"keys": ["loss", "kl"], "sums": torch.zeros(2), "count": 16}
    return lambda content: content["vae_lab"].update(means=means | changes)


def counter(name, value):
    """Change what Lightning has completed in all."""
    return lambda content: content["loops"]["fit_loop"][name]["total"].update(completed=value)


MISFITS_OF_TRAINING = {
    "moments of one number": moments(lambda moment: torch.zeros(1)),
    "moments that share their memory": moments(lambda moment: torch.zeros(1).expand(moment.shape)),
    "sparse moments": moments(lambda moment: moment.to_sparse()),
    "no moments": lambda content: [state.pop("exp_avg") for state in optimizer(content)["state"].values()],
    "no state": lambda content: optimizer(content)["state"].clear(),
    "a group too few": lambda content: optimizer(content)["param_groups"].clear(),
    "a group without a setting": lambda content: optimizer(content)["param_groups"][0].pop("betas"),
    "another kernel": lambda content: optimizer(content)["param_groups"][0].update(capturable=True),
    "no optimizer": lambda content: content.update(optimizer_states=[]),
    "a schedule that was not": lambda content: content.update(lr_schedulers=[{}]),
    "no stopwatch": lambda content: content["callbacks"].pop("Stopwatch"),
    "a stopwatch that is text": lambda content: content["callbacks"]["Stopwatch"].update(metrics_bytes="x"),
    "nothing of the best": lambda content: content["callbacks"].update(Checkpoints={}),
    "a best without its step": lambda content: content["callbacks"]["Checkpoints"]["best"].pop("step"),
    "no loops": lambda content: content.update(loops={}),
    "a counter that is a tensor": counter("epoch_loop.batch_progress", torch.ones(2)),
    "another epoch": counter("epoch_progress", 3),
    "another step": counter("epoch_loop.manual_optimization.optim_step_progress", 1),
    "another place": lambda content: content["vae_lab"].update(epoch=3),
    "other steps": lambda content: content.update(global_step=1),
    "a rate of nothing": lambda content: content["vae_lab"].update(lr=0.0),
    "means of too much": filled_means(sums=torch.zeros(3)),
    "means of text": filled_means(count="x"),
    "no Lightning": lambda content: content.pop("pytorch-lightning_version"),
    "averaged weights of nothing": lambda content: content.update(current_model_state={}),
}


@pytest.fixture(scope="module")
def experiment(trained):
    """The run, built again as by resume=."""
    return build(load_run(trained, "last").cfg, Preemption())


def changed(run_dir: Path, misfit: str) -> Path:
    """Change the last checkpoint of a run; returns its path."""
    path = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    MISFITS_OF_TRAINING[misfit](content)
    torch.save(content, path)
    return path


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("misfit", MISFITS_OF_TRAINING)
def test_g2_a_checkpoint_that_training_would_not_continue_exactly_is_refused(misfit, run_dir, experiment):
    check_continuation(experiment.lit, experiment.trainer, run_dir / "checkpoints" / "last.ckpt")
    path = changed(run_dir, misfit)
    with pytest.raises(RunError, match=rf"\A{path} cannot be continued from: .+\Z"):
        check_continuation(experiment.lit, experiment.trainer, path)


def test_g2_such_a_checkpoint_is_refused_by_the_command_before_any_of_it_is_used(run_dir, open_run):
    changed(run_dir, "moments of one number")
    before = (run_dir / "metrics.jsonl").read_bytes()
    code, message = open_run("resume", run_dir)
    assert code == 5, message
    assert "last.ckpt cannot be continued from: optimizer_states.0.state.0.exp_avg must be float32 (" in message
    assert (run_dir / "metrics.jsonl").read_bytes() == before
