"""The training, validation and test steps. No maths, no config.

Metrics are named `{stage}/{key}` with the keys of the objective and of the metric objects, and are means over all
images of the epoch. `train_step/{key}` is one batch, every `trainer.log_every_n_steps`.

Optimization is manual, because an objective may own an adversary with an optimizer of its own. `global_step` counts the
steps of the model. A training step takes several of them, an execution, because a return to Lightning's loop costs more
than a step of a small model.

Shapes: B batch, C channels, H height, W width.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.data.batches import Batch, ImageData
from vae_lab.data.seeds import TRAIN, VALIDATION, derive_seed, seed_generators
from vae_lab.errors import DataError, NumericsError
from vae_lab.metrics.standard import Means
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context, Stage
from vae_lab.runs.checkpoints import set_position
from vae_lab.training.classifier import provide
from vae_lab.training.steps import StepGraph, Steps, listeners, why_eager

log = logging.getLogger(__name__)

# `auto` takes more steps at once while they take less, up to so many, of images of less than so many bytes. Validations
# take as many bytes.
EXECUTION_SECONDS, MOST_STEPS, MOST_BYTES = 0.2, 256, 2**25
AROUND = ("on_train_batch_start", "on_train_batch_end")
AROUND_VALIDATION = ("on_validation_batch_start", "on_validation_batch_end")


class LitVAE(LightningModule):
    """Binds a model and an objective to Lightning.

    Args:
        vae: the model.
        objective: see `vae_lab.objectives`.
        metrics: what an evaluation measures; see `vae_lab.metrics`.
        optimizer: (parameters, lr=...) -> optimizer; of the model, and of the adversary if there is one.
        schedule: (step, total_steps) -> factor on the learning rate, or None for a constant one.
        lr: learning rate, > 0.
        seed: of the run, >= 0.
        accumulate: batches whose gradients make one optimizer step, >= 1.
        clip_val: largest norm of the gradient, or largest value of one of its elements; None or 0 clips nothing.
        clip_algorithm: `norm` or `value`.
        steps_per_execution: optimizer steps between two returns to Lightning's loop, >= 1, or `auto`. What is computed
            does not depend on it.
        cuda_graph: whether to take the steps as a CUDA graph; where they need or are something else, the log says why.

    Raises:
        ValueError: if lr or steps_per_execution is out of range.
    """

    def __init__(
        self,
        vae: VAE,
        objective: nn.Module,
        metrics: Sequence[Any],
        optimizer: Callable | None,
        schedule: Callable | None,
        lr: float,
        seed: int,
        accumulate: int = 1,
        clip_val: float | None = None,
        clip_algorithm: str = "norm",
        steps_per_execution: int | str = "auto",
        cuda_graph: bool = False,
    ):
        super().__init__()
        if not isinstance(lr, float | int) or not 0 < lr < float("inf"):
            raise ValueError(f"optimizer.lr must be > 0 and finite, got {lr!r}")
        if steps_per_execution != "auto" and not (type(steps_per_execution) is int and steps_per_execution >= 1):
            known = "a whole number >= 1 or auto"
            raise ValueError(f"trainer.steps_per_execution must be {known}, got {steps_per_execution!r}")
        self.automatic_optimization = False
        self.vae = vae
        self.objective: Any = objective  # with a loss of its adversary, if it has one
        self.metrics = metrics
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr = lr
        self.seed = seed
        self.accumulate = accumulate
        self.clip_val = clip_val
        self.clip_algorithm = clip_algorithm
        self.is_adaptive = steps_per_execution == "auto"
        self.steps_at_once = 1 if self.is_adaptive else int(steps_per_execution)
        self.cuda_graph = cuda_graph
        self.batches_seen = 0
        self.validated_at = -1  # the step of the last validation
        self.means = Means()
        inputs = (torch.zeros(2, *vae.image_shape), *example_labels(vae))
        self.example_input_array = inputs if vae.encoder is not None else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Reconstruct images (B, C, H, W), with labels (B, F) of a conditional model, from their codes."""
        return self.vae(x, y)

    @property
    def adversary(self) -> nn.Module | None:
        """The network that the objective trains against the model, if it has one."""
        return getattr(self.objective, "adversary", None)

    @property
    def epochs_begun(self) -> int:
        """The number of the present epoch, from 1: those of which a batch was seen; 0 before the first.

        This is the `epoch` of the whole record. Lightning's `current_epoch` counts from 0, and is another one after the
        end of a run than after the continuation of one that was killed there.
        """
        return math.ceil(self.batches_seen / self.trainer.num_training_batches)

    @property
    def total_steps(self) -> float:
        """Optimizer steps of the whole run at most; infinite where only time or early stopping end it."""
        self.trainer.fit_loop.setup_data()  # the number of batches is known only then
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        total_steps = math.inf if steps == -1 else steps
        if epochs in (None, -1):
            return total_steps
        return min(total_steps, math.ceil(self.trainer.num_training_batches / self.accumulate) * epochs)

    def new_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the model and, if there is an adversary, one for that."""
        assert self.optimizer is not None  # it is where there is training
        rival = list(self.adversary.parameters()) if self.adversary is not None else []
        of_rival = set(rival)
        own = [parameter for parameter in self.parameters() if parameter not in of_rival]
        return [self.optimizer(group, lr=self.lr) for group in (own, rival) if group]

    def configure_optimizers(self) -> tuple[list, list]:
        optimizers, schedule = self.new_optimizers(), self.schedule
        if schedule is None:
            return optimizers, []
        total_steps = self.total_steps
        return optimizers, [LambdaLR(o, lambda step: schedule(step, total_steps)) for o in optimizers]

    def on_fit_start(self) -> None:
        data, callbacks = self.trainer.datamodule, self.trainer.callbacks
        data.keep_on(self.device)
        provide(self.metrics, data)
        others = [c for c in callbacks if not type(c).__module__.startswith("vae_lab.") and not isinstance(c, Timer)]
        if listeners(others, AROUND):  # they look at every batch
            self.is_adaptive, self.steps_at_once = False, 1

    def on_train_start(self) -> None:
        to_pixels = partial(self.trainer.datamodule.to_pixels, training=True)
        clipping = (self.accumulate, self.clip_val, self.clip_algorithm)
        self.steps: Steps | StepGraph = Steps(self, self.trainer.strategy.optimizers, to_pixels, *clipping)
        if self.cuda_graph:
            if reason := why_eager(self.steps):
                log.info("no CUDA graph: %s", reason)
            else:
                self.steps = StepGraph(self.steps)

    def batches_at_once(self, batch: int) -> int:
        """How many batches one execution takes, from a batch of the epoch on: at most to the next validation or end.

        `auto` doubles the steps until an execution takes long enough for what surrounds it not to count. A callback
        that looks at steps of its own has `steps_to_look(step)`, the number of steps to the next of them.
        """
        trainer, window = self.trainer, self.accumulate
        if self.automatic_optimization or trainer.world_size > 1 or self.trainer.datamodule.num_workers:
            return 1
        steps = self.steps_at_once
        if trainer.max_steps != -1:
            steps = min(steps, trainer.max_steps - self.global_step)
        for callback in trainer.callbacks:
            if hasattr(callback, "steps_to_look"):
                steps = int(min(steps, callback.steps_to_look(self.global_step)))
        ends = [batch - batch % window + steps * window, trainer.num_training_batches]
        if isinstance(trainer.val_check_batch, int):
            since = batch if trainer.check_val_every_n_epoch is not None else self.batches_seen
            ends.append(batch + trainer.val_check_batch - since % trainer.val_check_batch)
        return max(1, min(ends) - batch)

    def batches_validated_at_once(self, batch: int) -> int:
        """How many batches one validation step takes, from a batch on: all that fit, if no callback looks at each."""
        trainer, data = self.trainer, self.trainer.datamodule
        is_watched = listeners(trainer.callbacks, AROUND_VALIDATION)
        if is_watched or trainer.sanity_checking or data.num_workers:  # which take turns
            return 1
        fitting = MOST_BYTES // (data.batch_size * math.prod(data.image_shape))
        return min(int(trainer.num_val_batches[0]) - batch, max(1, fitting))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin each optimizer step with the running statistics of the first process, which checkpoints hold."""
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and batch_idx % self.accumulate == 0:
            model.require_forward_param_sync = True  # Lightning clears it under manual optimization

    def training_step(self, execution: Batch, batch_idx: int) -> Tensor | None:
        # Looked up and derived at once: between the kernels of a step, with cold caches, it takes ten times as long.
        started, trainer, data, window = time.perf_counter(), self.trainer, self.trainer.datamodule, self.accumulate
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        group, last = trainer.strategy.optimizers[0].param_groups[0], trainer.num_training_batches - 1
        posterior = self.vae.posterior if hasattr(self.vae.posterior, "step") else None
        batches, device, first = execution.split(data.batch_size), self.device, self._context("train")
        # Seeded at every batch, so that a resumed run draws the same noise from here on.
        streams = range(self.batches_seen, self.batches_seen + len(batches))
        seeds = [derive_seed(self.seed, TRAIN, stream, self.global_rank) for stream in streams]
        self.batches_seen += len(batches)
        if batch_idx == 0:
            self.vae.likelihood.check(data.to_pixels(batches[0], training=False).x)
        indices = range(batch_idx, batch_idx + len(batches))
        contexts = [first._replace(step=first.step + i // window - batch_idx // window) for i in indices]
        rates, rows = [], []
        for i, batch, seed, context in zip(indices, batches, seeds, contexts, strict=True):
            seed_generators(device, seed)
            if posterior is not None:
                posterior.step = context.step
            if self.automatic_optimization:  # Lightning's search for a learning rate steps by itself
                return self.objective(self.vae, data.to_pixels(batch, training=True), context)["loss"]
            rates.append(group["lr"])
            closes = (i + 1) % window == 0 or i == last
            rows.append(self.steps(batch, context, i % window == 0, closes))
            if closes:
                progress.increment_by(1)
                for scheduler in schedulers:
                    scheduler.step()
        if len(batches) > 1:
            self.trainer.fit_loop.epoch_loop.batch_progress.increment_by(len(batches) - 1)
        self._account(batches, contexts, rates, rows, batch_idx)
        is_short = time.perf_counter() - started < EXECUTION_SECONDS and execution.x.nbytes < MOST_BYTES
        is_whole = len(batches) >= self.steps_at_once * window  # not cut at a validation or an end
        if self.is_adaptive and is_whole and is_short:
            self.steps_at_once = min(2 * self.steps_at_once, MOST_STEPS)
        return None

    def _account(
        self, batches: list[Batch], contexts: list[Context], rates: list[float], rows: list[Tensor], batch_idx: int
    ) -> None:
        """Refuse a loss that is not finite, add the terms of an execution to the means, and log those that are due."""
        keys = self.steps.keys
        stacked = torch.stack(rows).cpu()  # the only place where an execution waits for the device
        for i, (batch, context, rate, row, values) in enumerate(
            zip(batches, contexts, rates, stacked, stacked.tolist(), strict=True)
        ):
            terms = dict(zip(keys, values, strict=True))
            self._check_finite(terms, "train", context.step)
            self.means.add_stacked(keys, row, len(batch.x))
            if (batch_idx + i) % self.accumulate == 0 and context.step % self.trainer.log_every_n_steps == 0:
                named = {f"train_step/{key}": number for key, number in terms.items()}
                self._record({**named, "train_step/lr": rate}, context.step)

    def _context(self, stage: Stage) -> Context:
        return Context(self.global_step, len(self.trainer.datamodule.splits["train"]), stage)

    def on_train_epoch_end(self) -> None:
        self._log_means(self.means.compute(self._sum_over_processes), "train")
        self.means = Means()

    def on_validation_epoch_start(self) -> None:
        self.batches_measured = 0
        for metric in self.metrics:
            metric.reset()

    def validation_step(self, execution: Batch, batch_idx: int, stage: Stage = "val") -> None:
        data, context = self.trainer.datamodule, self._context(stage)
        for loaded in execution.split(data.batch_size):
            # The same noise at every evaluation, so that epochs and runs differ by their weights only.
            seed_generators(self.device, derive_seed(self.seed, VALIDATION, self.batches_measured, self.global_rank))
            batch = data.to_pixels(loaded, training=False)
            if self.batches_measured == 0:
                self.vae.likelihood.check(batch.x)
            self.batches_measured += 1
            with self.vae.encoding_once(batch.x, batch.y) as q:
                terms = self.objective(self.vae, batch, context)
                if self.adversary is not None:
                    terms = {**terms, **self.objective.adversary_loss(self.vae, batch, context)}
                for metric in self.metrics:
                    metric.update(self.vae, batch, q, terms)

    def on_validation_epoch_end(self, stage: str = "val") -> None:
        values: dict[str, Tensor] = {}
        for metric in self.metrics:
            values |= metric.compute(self._sum_over_processes)
        self._check_finite({key: float(value) for key, value in values.items()}, stage, self.global_step)
        self._log_means(values, stage)
        self.validated_at = self.global_step

    def on_test_start(self) -> None:
        provide(self.metrics, self.trainer.datamodule)

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test")

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum").to(values.device)

    def _log_means(self, metrics: dict[str, Tensor], stage: str) -> None:
        named = {f"{stage}/{key}": float(value) for key, value in metrics.items()}
        # For checkpoints and early stopping. `log_dict` would put them there too, and take 30 ms for it.
        self.trainer.callback_metrics.update({key: torch.tensor(value) for key, value in named.items()})
        self._record(named, self.global_step)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics({**metrics, "epoch": self.epochs_begun}, step=step)

    def _check_finite(self, terms: dict[str, float], stage: str, step: int) -> None:
        loss = terms.get("loss", 0.0)
        if math.isfinite(loss):
            return
        values = ", ".join(f"{key}={value:g}" for key, value in terms.items() if key != "loss")
        raise NumericsError(
            f"{stage} loss became {loss} at step {step} of epoch {self.epochs_begun} "
            f"({values}, lr={self.lr:g}); checkpoints/last.ckpt holds the last finite weights. "
            "In a new run lower optimizer.lr or set trainer.gradient_clip_val=1.0"
        )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add what an exact continuation needs, as plain containers."""
        # Epochs completed, and batches completed in the epoch after them.
        epoch, batch = divmod(self.batches_seen, self.trainer.num_training_batches) if self.batches_seen else (0, 0)
        set_position(checkpoint, epoch, batch, self.batches_seen)
        means = self.means.state_dict()
        if self.trainer.world_size > 1 and means["sums"] is not None:
            means["sums"] = self.all_gather(means["sums"].to(self.device)).cpu()  # (processes, keys)
        checkpoint["vae_lab"] = {
            "seed": self.seed,
            "epoch": epoch,
            "batch": batch,
            "batches_seen": self.batches_seen,
            "lr": self.lr,
            "validated_at": self.validated_at,
            "images": self.trainer.datamodule.fingerprint,
            "means": means,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Continue where the checkpoint stands."""
        state = checkpoint["vae_lab"]
        check_same_images(self.trainer.datamodule, state["images"])
        self.batches_seen = state["batches_seen"]
        self.lr = state["lr"]
        self.validated_at = state["validated_at"]
        means = state["means"]
        if means["sums"] is not None and means["sums"].ndim == 2:
            means = {**means, "sums": means["sums"][self.global_rank]}
        self.means.load_state_dict(means)
        self.trainer.datamodule.start_at(state["epoch"], state["batch"])


def example_labels(vae: VAE) -> list[Tensor]:
    """Labels (2, F) for two images, where the model takes any."""
    return [torch.zeros(2, len(vae.num_classes), dtype=torch.long)] if vae.num_classes else []


def check_same_images(data: ImageData, known: str) -> None:
    """Refuse images other than those a run was trained on: its test images may be among their training images.

    Raises:
        DataError: if the images or their splits differ.
    """
    if data.fingerprint != known:
        raise DataError(
            "the images or their splits are not those that the run was trained on; "
            "point data_root (or dataset.root) to the same images, or start a new run"
        )
