"""From a config to objects: everything is built and cross-checked before data is read or a tracker is started."""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vae_lab.config.check import arguments, check_settings
from vae_lab.config.instantiate import build_vae, check_target, instantiate
from vae_lab.config.secrets import redact
from vae_lab.data.batches import Batch, ImageData
from vae_lab.errors import one_line
from vae_lab.loggers.guarded import GuardedLogger
from vae_lab.loggers.wandb import WandbLogger
from vae_lab.models.networks.conditional import ConditionalEncoder
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context, Stage
from vae_lab.runs.checkpoints import Checkpoints, DurableCheckpointIO, StopAtSignal
from vae_lab.runs.measurements import MetricsLogger, Stopwatch
from vae_lab.runs.metrics_file import MetricsFile
from vae_lab.runs.signals import Preemption
from vae_lab.runs.structure import shown
from vae_lab.training.devices import check_devices, check_trainer, choose_precision
from vae_lab.training.health import Health
from vae_lab.training.module import LitVAE, example_labels

log = logging.getLogger(__name__)
# Arguments of the Trainer that Lightning refuses where it does not optimize by itself: `LitVAE` does what they say.
OURS = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "gradient_clip_algorithm": None}
TRAINED = {  # the parts of a model, and what to choose where an objective does not train one
    "encoder": "choose posterior=none, which has none",
    "posterior": "choose posterior=gaussian",
    "prior": "choose prior=standard_normal, which learns nothing",
    "decoder": "choose another objective",
    "likelihood": "choose a loss that learns nothing, such as loss=mse",
}
READERS = {"dataset": ImageData}  # whose keys are arguments of these classes, see `check_settings`


class Experiment(NamedTuple):
    """Everything a run needs, built but not started."""

    data: ImageData
    lit: LitVAE
    trainer: Trainer
    stopwatch: Stopwatch


def build(cfg: DictConfig, preemption: Preemption) -> Experiment:
    """Build and cross-check every object; no data is read, no tracker started.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    if not torch.cuda.is_available():
        # Lightning's import sets this to 1, and every step of a fused optimizer then looks for the GPU's driver anew.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    elif not cfg.trainer.get("benchmark"):
        torch.backends.cudnn.deterministic = True  # its fastest convolutions add up in another order every time
    check_settings(cfg, READERS)
    check_trainer(cfg.trainer)
    check_devices(cfg.trainer)
    data = build_data(cfg)
    lit = build_module(cfg)
    data.batches_at_once, data.batches_validated_at_once = lit.batches_at_once, lit.batches_validated_at_once
    callbacks = build_members(cfg.callbacks, "callbacks", Callback)
    loggers = build_members(cfg.logger, "logger", Logger)
    for name, logger in loggers.items():
        folder = getattr(logger, "log_dir", None) or cfg.logger[name].get("save_dir")
        if folder is not None and not Path(folder).resolve().is_relative_to(Path(cfg.run_dir).resolve()):
            raise ValueError(f"logger.{name} must write into the run folder, got {folder}; leave save_dir=${{run_dir}}")
    check_callbacks(cfg, callbacks, lit)
    check_trained(lit)
    for name, logger in loggers.items():
        if isinstance(logger, WandbLogger):
            logger.check()  # and it sees to it itself that it cannot fail the run
        else:
            loggers[name] = GuardedLogger(name, logger)
    settings = {"precision": choose_precision(cfg), **OURS}
    if cfg.trainer.strategy == "ddp" and lit.adversary is not None:  # each loss leaves the other's parameters alone
        settings["strategy"] = "ddp_find_unused_parameters_true"
    metrics = MetricsFile(cfg.run_dir)
    stopwatch = Stopwatch(metrics)
    known = ("_target_", *arguments(Trainer)[0])  # the others under trainer. are ours
    of_lightning = OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key in known])
    trainer = instantiate(
        OmegaConf.merge(of_lightning, settings),
        "trainer",
        default_root_dir=cfg.run_dir,
        callbacks=[stopwatch, Health(), *callbacks.values(), StopAtSignal(preemption)],
        logger=[MetricsLogger(metrics), *loggers.values()],
        plugins=[DurableCheckpointIO(), LightningEnvironment()],  # not what a launcher's variables say
        enable_checkpointing=True,
        enable_progress_bar=False,
    )
    if cfg.compile:
        for network in filter(None, (lit.vae.encoder, lit.vae.decoder)):
            network.compile()
    return Experiment(data, lit, trainer, stopwatch)


def build_data(cfg: DictConfig) -> ImageData:
    """Build the data module a config describes; nothing is read yet.

    Raises:
        ValueError: if a setting is out of range.
    """
    source = instantiate(cfg.dataset.source, "dataset.source")
    if not hasattr(source, "read"):
        raise ValueError(f"dataset.source must be a class with read(), got {type(source).__name__}")
    keys = ("image_shape", "batch_size", "binarize", "flip", "val_size", "test_size", "split_seed", "num_workers")
    settings = {key: cfg.dataset[key] for key in (*keys, "num_classes")}
    return ImageData(source, **settings, seed=cfg.seed)


def build_module(cfg: DictConfig) -> LitVAE:
    """Build the model with all that trains it."""
    check_seed(cfg.seed)
    seed_everything(cfg.seed, verbose=False)  # the initial weights
    vae = build_vae(cfg)
    objective = build_objective(cfg, vae)
    check_weights(cfg, vae)
    return LitVAE(
        vae,
        objective,
        build_metrics(cfg, vae),
        build_optimizer(cfg.optimizer, vae),
        instantiate(cfg.optimizer.schedule, "optimizer.schedule") if cfg.optimizer.schedule else None,
        cfg.optimizer.lr,
        cfg.seed,
        accumulate=cfg.trainer.accumulate_grad_batches,
        clip_val=cfg.trainer.gradient_clip_val,
        clip_algorithm=cfg.trainer.gradient_clip_algorithm or "norm",
        steps_per_execution=cfg.trainer.steps_per_execution,
        cuda_graph=cfg.trainer.cuda_graph,
    )


def check_seed(seed: Any) -> None:
    """Refuse what generators of random numbers do not take.

    Raises:
        ValueError: with the value.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number in [0, 2**32), got {seed!r}")


def check_weights(cfg: DictConfig, vae: VAE) -> None:
    """Refuse a prior that the model has none of, or a weight of the KL that the objective does not take.

    Where there is no KL to weigh, a warning says so.
    """
    name, is_new = cfg.prior._target_, cfg.resume in (None, "auto")
    if vae.prior is None and is_new and check_target("prior", name) is not StandardNormal:
        posterior = type(vae.posterior).__name__
        raise ValueError(f"prior: {name} has no effect, because {posterior} has no prior; leave prior=standard_normal")
    taken = OmegaConf.to_yaml(cfg.objective)
    for key, neutral in (("KLD_weight", 1), ("warmup_steps", 0), ("free_bits", 0)):
        if cfg.loss.get(key, neutral) == neutral:
            continue
        if f"${{loss.{key}}}" not in taken:
            settings = ", ".join(name for name in cfg.objective if name != "_target_") or "nothing"
            raise ValueError(
                f"loss.{key}={cfg.loss[key]} has no effect: {cfg.objective._target_} takes {settings}; "
                f"leave loss.{key}={neutral}"
            )
        if vae.prior is None:
            log.warning("loss.%s=%s has no effect: a deterministic posterior has no KL", key, cfg.loss[key])
        elif hasattr(vae.posterior, "num_codes"):
            words = "loss.%s=%s has no effect: the KL of codes is a constant, log K for each"
            log.warning(words, key, cfg.loss[key])


def build_objective(cfg: DictConfig, vae: VAE) -> nn.Module:
    """Build the objective a config describes, with its adversary if it has one.

    Raises:
        ValueError: if the model lacks what the objective needs.
    """
    settings: Any = OmegaConf.to_container(cfg.objective, resolve=True)
    networks = {}
    if "adversary" in settings:
        judges = getattr(check_target("objective", cfg.objective._target_), "judges", "images")
        image_shape = vae.image_shape if judges == "images" else (math.prod(vae.latent_shape), 1, 1)
        sees_labels = bool(vae.num_classes) and judges == "images"  # then they are one more channel
        given = {"image_shape": (image_shape[0] + sees_labels, *image_shape[1:]), "out_features": 1}
        adversary = OmegaConf.create(settings.pop("adversary"))
        try:
            networks["adversary"] = instantiate(adversary, "objective.adversary", **given)
        except ValueError as error:  # networks are used to be the model's
            raise ValueError(re.sub(r"^model\.", "objective.adversary.", str(error))) from error
        if sees_labels:
            networks["adversary"] = ConditionalEncoder(networks["adversary"], vae.num_classes, image_shape[1:])
    objective = instantiate(OmegaConf.create(settings), "objective", **networks)
    if not isinstance(objective, nn.Module):
        raise ValueError(f"objective must be a torch.nn.Module, got {type(objective).__name__}")
    check_needs("objective", objective, vae)
    return objective


def check_needs(key: str, part: object, vae: VAE) -> None:
    """Refuse a model that lacks what an objective or a metric declares to need.

    Raises:
        ValueError: naming the part and what is missing.
    """
    has_density = getattr(vae.posterior, "has_density", False)
    differ = has_density and not hasattr(vae.posterior, "num_codes")
    kinds = {  # of q, and how a message calls them
        "density": (differ, "a posterior with a density, whose samples differ"),
        "diagonal": (getattr(vae.posterior, "diagonal", False), "a posterior that is a diagonal Gaussian"),
        "point": (not has_density, "a posterior that is a point, such as deterministic"),
    }
    name, posterior = type(part).__name__, type(vae.posterior).__name__
    for need in getattr(part, "needs", ()):
        has, words = kinds.get(need, (True, ""))
        if not has:
            raise ValueError(f"{key}: {name} needs {words}, got {posterior}")
        if need not in kinds and getattr(vae, need) is None:
            raise ValueError(f"{key}: {name} needs a model with {need}, which posterior {posterior} has none of")


def build_metrics(cfg: DictConfig, vae: VAE) -> list[Any]:
    """Build what an evaluation measures.

    Raises:
        ValueError: if the model lacks what a metric needs.
    """
    metrics = build_members(cfg.metrics, "metrics", ("reset", "update", "compute"))
    for name, metric in metrics.items():
        check_needs(f"metrics.{name}", metric, vae)
    return list(metrics.values())


def build_optimizer(optimizer: DictConfig, vae: VAE) -> Callable:
    """Build what makes an optimizer of parameters, and try it, because torch checks its settings only then."""
    build = instantiate(OmegaConf.masked_copy(optimizer, [key for key in optimizer if key != "schedule"]), "optimizer")

    def refusal(without: str | None = None) -> Exception | None:
        try:
            build.func(vae.parameters(), **{key: value for key, value in build.keywords.items() if key != without})
        except (TypeError, ValueError, RuntimeError) as error:
            return error
        return None

    if error := refusal():
        blamed = [f"optimizer.{key}={value}" for key, value in build.keywords.items() if not refusal(without=key)]
        raise ValueError(f"{' or '.join(blamed) or 'optimizer'}: {error}") from error
    return build


def build_members(group: DictConfig, key: str, kind: type | tuple[str, ...]) -> dict[str, Any]:
    """Build every member of a group that is not null: a class of Lightning, or one that has some methods."""
    members = {name: instantiate(group[name], f"{key}.{name}") for name in group if group[name] is not None}
    for name, member in members.items():
        if isinstance(kind, type) and not isinstance(member, kind):
            raise ValueError(f"{key}.{name} must be a {kind.__name__} of Lightning, got {type(member).__name__}")
        if isinstance(kind, tuple) and not all(hasattr(member, method) for method in kind):
            raise ValueError(f"{key}.{name} must be a class with {', '.join(kind)}, got {type(member).__name__}")
        plain = OmegaConf.to_container(group[name], resolve=True)
        if type(member).__module__.startswith("lightning.") and redact(plain) != plain:  # in names of files and metrics
            raise ValueError(f"{key}.{name} holds a secret, which it would write into the run folder; remove it")
    return members


def names_of_metrics(lit: LitVAE) -> set[str]:
    """The keys of what an epoch logs, found by trying the untrained model on two black images; no step is taken.

    Raises:
        ValueError: if that fails, because the parts do not fit each other, or if one does not return what it should.
    """
    vae = lit.vae
    batch = Batch(torch.zeros(2, *vae.image_shape), *example_labels(vae))
    lit.eval()
    with torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            terms = try_objective(lit, batch, "val")
            with tried(lit, "cannot be evaluated"):
                q = vae.encode(batch.x, batch.y) if vae.encoder is not None else None
                for metric in lit.metrics:
                    metric.reset()
                    metric.update(vae, batch, q, terms)
                values = [(key, float(value)) for m in lit.metrics for key, value in m.compute(lambda s: s).items()]
        trained = try_objective(lit, batch, "train")
    lit.train()
    return {f"train/{key}" for key in trained} | {f"val/{key}" for key, _ in values}


def try_objective(lit: LitVAE, batch: Batch, stage: Stage) -> dict[str, Tensor]:
    """What the objective returns at the first step, with that of its adversary.

    Raises:
        ValueError: if that fails, or is not a flat dict of 0-dim tensors with a loss to descend.
    """
    objective: Any = lit.objective
    terms: dict[str, Tensor] = {}
    calls = {"loss": objective} | ({} if lit.adversary is None else {"discriminator_loss": objective.adversary_loss})
    for loss, call in calls.items():
        with tried(lit, "cannot be trained, at step 0" if stage == "train" else "cannot be evaluated"):
            found = call(lit.vae, batch, Context(0, 1, stage))
        wrong = ""
        if not isinstance(found, dict):
            wrong = f"a {type(found).__name__}"
        elif odd := [k for k, v in found.items() if not isinstance(k, str) or not isinstance(v, Tensor) or v.ndim]:
            wrong = ", ".join(f"{key!r}: {shown(found[key])}" for key in odd)
        elif loss not in found:
            wrong = ", ".join(found) or "an empty one"
        elif stage == "train" and any(p.requires_grad for p in lit.parameters()) and not found[loss].requires_grad:
            wrong = f"{loss} without a gradient"
        if wrong:
            name = type(objective).__name__ + (".adversary_loss" if loss != "loss" else "")
            form = f"a flat dict of 0-dim tensors, {loss} among them"
            raise ValueError(f"objective: {name} must return {form}, got {wrong}")
        terms |= found
    return terms


@contextmanager
def tried(lit: LitVAE, failed: str) -> Iterator[None]:
    """Name the parts of a model where the block fails."""
    try:
        yield
    except Exception as error:  # a user's own part raises all kinds
        parts = (lit.objective, lit.vae.posterior, lit.vae.likelihood, lit.vae.encoder, lit.vae.decoder)
        names = ", ".join(type(part).__name__ for part in parts if part is not None)
        raise ValueError(f"the model of {names} {failed}: {one_line(error)}") from error


def check_trained(lit: LitVAE) -> None:
    """Refuse a part of which the objective trains no parameter, found by the gradient at two black images.

    Raises:
        ValueError: naming the part, and what to choose instead.
    """
    vae, objective, name = lit.vae, lit.objective, type(lit.objective).__name__
    batch = Batch(torch.zeros(2, *vae.image_shape), *example_labels(vae))
    named = {key: parameter for key, parameter in vae.named_parameters() if parameter.requires_grad}
    before = [(buffer, buffer.clone()) for buffer in lit.buffers()]
    with torch.random.fork_rng(devices=[]):
        loss = objective(vae, batch, Context(0, 1, "train"))["loss"]
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True) if loss.requires_grad else ()
    for buffer, value in before:  # of running statistics
        buffer.copy_(value)
    trained = [key for key, gradient in zip(named, gradients, strict=False) if gradient is not None]
    for part, remedy in TRAINED.items():
        if not any(key.startswith(f"{part}.") for key in trained) and any(key.startswith(f"{part}.") for key in named):
            kind = type(getattr(vae, part)).__name__
            raise ValueError(f"objective: {name} never trains the {part}, {kind}; {remedy}")
    if untrained := sorted(named.keys() - trained):
        log.info("%s never trains %s", name, ", ".join(untrained))


def check_callbacks(cfg: DictConfig, callbacks: dict[str, Callback], lit: LitVAE) -> None:
    """Refuse to watch what will not be measured, and training that nothing ends.

    Raises:
        ValueError: naming the callback and what there is, or what can end the training.
    """
    trainer, metrics = cfg.trainer, names_of_metrics(lit)
    # A user's own may log metrics, and end the training.
    foreign = any(not type(c).__module__.startswith(("vae_lab.", "lightning.")) for c in callbacks.values())
    for name, callback in callbacks.items():
        key, monitor = f"callbacks.{name}", getattr(callback, "monitor", None)
        if monitor == "val/loss" and lit.adversary is not None:  # which raises it when it learns
            if not isinstance(callback, Checkpoints):
                name = type(lit.objective).__name__
                raise ValueError(
                    f"{key}.monitor must not be val/loss: of {name}, with its adversary, lower is not better"
                )
            callback.mode = "last"
        if monitor is not None and monitor not in metrics and not foreign:
            known = ", ".join(sorted(metric for metric in metrics if metric.startswith("val/")))
            raise ValueError(f"{key}.monitor must be one of {known}, got {monitor!r}")
        if not isinstance(callback, EarlyStopping):
            continue
        at_epoch_end = OmegaConf.select(cfg, f"{key}.check_on_train_epoch_end")
        if not callback.monitor.startswith("val/"):
            is_rare = any(trainer.get(k) not in (None, 1) for k in ("val_check_interval", "check_val_every_n_epoch"))
            # A mean of the training is known only then; where null is given, Lightning decides.
            if callback.monitor in metrics and (at_epoch_end is False or at_epoch_end is None and is_rare):
                must = f"{key}.check_on_train_epoch_end must be true"
                raise ValueError(f"{must} to watch {monitor}, got {str(at_epoch_end).lower()}")
            continue
        for size in ("dataset.val_size", "trainer.limit_val_batches"):
            if OmegaConf.select(cfg, size) == 0:
                raise ValueError(f"{size} must be > 0 with {key}, which watches {monitor}, got 0")
        if at_epoch_end is not False and cfg.resume in (None, "auto"):  # trainer.max_steps may end an epoch without one
            raise ValueError(f"{key}.check_on_train_epoch_end must be false to watch {monitor}, got {at_epoch_end}")
    if any(trainer[key] not in (None, -1) for key in ("max_epochs", "max_steps")):
        return
    if (
        trainer.max_time is None
        and not foreign
        and not any(isinstance(c, EarlyStopping | Timer) for c in callbacks.values())
    ):
        raise ValueError(
            f"nothing ends the training, got trainer.max_epochs={trainer.max_epochs} and trainer.max_steps="
            f"{trainer.max_steps}; set one of them, or trainer.max_time, or callbacks=early_stopping"
        )
    if lit.schedule is not None:
        lit.schedule(sys.maxsize, math.inf)  # refuses, if it needs an end
