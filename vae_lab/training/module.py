"""The training, validation and test steps. No maths, no config.

Metrics are named `{stage}/{key}` with the keys of the objective and of the metric objects, and are means over all
images of the epoch. `train_step/{key}` is one batch, every `trainer.log_every_n_steps`.

Optimization is manual, because an objective may own an adversary with an optimizer of its own: the model's step, then
the adversary's. `global_step` counts the steps of the model. Clipping and accumulation are done here, as Lightning
does them where it optimizes by itself.

Shapes: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
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

    Raises:
        ValueError: if lr is out of range.
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
    ):
        super().__init__()
        if not isinstance(lr, float | int) or not 0 < lr < float("inf"):
            raise ValueError(f"optimizer.lr must be > 0 and finite, got {lr!r}")
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
        self.batches_seen = 0
        self.validated_at = -1  # the step of the last validation
        self.means = Means()
        self.example_input_array = torch.zeros(2, *vae.image_shape) if vae.encoder is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) from their codes."""
        return self.vae(x)

    @property
    def adversary(self) -> nn.Module | None:
        """The network that the objective trains against the model, if it has one."""
        return getattr(self.objective, "adversary", None)

    @property
    def epochs_begun(self) -> int:
        """Epochs of which a batch was seen; Lightning's `current_epoch` forgets the last one of a finished run."""
        return math.ceil(self.batches_seen / self.trainer.num_training_batches)

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
        self.trainer.fit_loop.setup_data()  # the number of batches is known only then
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        total_steps = math.inf if steps == -1 else steps  # infinite where only time or early stopping end it
        if epochs not in (None, -1):
            total_steps = min(total_steps, math.ceil(self.trainer.num_training_batches / self.accumulate) * epochs)
        return optimizers, [LambdaLR(o, lambda step: schedule(step, total_steps)) for o in optimizers]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin each optimizer step with the running statistics of the first process, which checkpoints hold."""
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and batch_idx % self.accumulate == 0:
            model.require_forward_param_sync = True  # Lightning clears it under manual optimization

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        # Seeded at every batch, so that a resumed run draws the same noise from here on.
        batch, context = self._prepare(batch, batch_idx, "train", TRAIN, self.batches_seen)
        optimizers = self.trainer.strategy.optimizers
        opens_window = batch_idx % self.accumulate == 0
        closes_window = (batch_idx + 1) % self.accumulate == 0 or batch_idx + 1 == self.trainer.num_training_batches
        if self.adversary is not None:
            self.adversary.requires_grad_(False)  # its gradients come from its own loss only
        if hasattr(self.vae.posterior, "step"):
            self.vae.posterior.step = context.step
        terms = self.objective(self.vae, batch, context)
        self._check_finite(terms, "train")
        self.batches_seen += 1
        if self.automatic_optimization:  # Lightning's search for a learning rate steps by itself
            return terms["loss"]
        if opens_window:
            for optimizer in optimizers:
                optimizer.zero_grad()
        lr = optimizers[0].param_groups[0]["lr"]
        self._backward(terms["loss"], closes_window)
        if closes_window:
            counted = self.optimizers()  # by Lightning, whose global_step is the number of its steps
            with self._full_precision():
                (counted[0] if isinstance(counted, list) else counted).step()
        if self.adversary is not None:
            self.adversary.requires_grad_(True)
            judged = self.objective.adversary_loss(self.vae, batch, context)
            self._backward(judged["discriminator_loss"], closes_window)
            if closes_window:
                with self._full_precision():  # past Lightning's wrapper, which would count the step
                    self.trainer.strategy.optimizer_step(optimizers[1], lambda: None, model=self)
            terms = {**terms, **judged}
        if closes_window:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()
        self.means.add(terms, len(batch.x))
        if opens_window and context.step % self.trainer.log_every_n_steps == 0:
            named = {f"train_step/{key}": value.item() for key, value in terms.items()}
            self._record({**named, "train_step/lr": lr}, context.step)
        return None

    def _prepare(self, batch: Batch, batch_idx: int, stage: Stage, *stream: int) -> tuple[Batch, Context]:
        """Seed the noise of a batch, and turn its bytes (B, C, H, W) into pixels."""
        seed_generators(batch.x.device, derive_seed(self.seed, *stream, self.global_rank))
        data = self.trainer.datamodule
        batch = data.to_pixels(batch, training=stage == "train")
        if batch_idx == 0:
            self.vae.likelihood.check(batch.x)
        return batch, Context(self.global_step, len(data.splits["train"]), stage)

    def _backward(self, loss: Tensor, closes_window: bool) -> None:
        """Add the gradients of a batch; processes exchange them once for each optimizer step."""
        strategy = self.trainer.strategy
        waits = not closes_window and isinstance(strategy, ParallelStrategy)
        with self._full_precision(), strategy.block_backward_sync() if waits else nullcontext():
            self.manual_backward(loss / self.accumulate)

    def _full_precision(self) -> AbstractContextManager:
        """What surrounds all but the forward pass: autocast is for that alone."""
        return torch.autocast(self.device.type, enabled=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.clip_val or self.automatic_optimization:
            return
        # The gradients are no longer scaled for float16 here.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        by_value = self.clip_algorithm == "value"
        (nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_)(parameters, self.clip_val)

    def on_train_epoch_end(self) -> None:
        self._log_means(self.means.compute(self._sum_over_processes), "train")
        self.means = Means()

    def on_validation_epoch_start(self) -> None:
        for metric in self.metrics:
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int, stage: Stage = "val") -> None:
        # The same noise at every evaluation, so that epochs and runs differ by their weights only.
        batch, context = self._prepare(batch, batch_idx, stage, VALIDATION, batch_idx)
        terms = self.objective(self.vae, batch, context)
        if self.adversary is not None:
            terms = {**terms, **self.objective.adversary_loss(self.vae, batch, context)}
        self._check_finite(terms, stage)
        q = self.vae.encode(batch.x, batch.y) if self.vae.encoder is not None else None
        for metric in self.metrics:
            metric.update(self.vae, batch, q, terms)

    def on_validation_epoch_end(self, stage: str = "val") -> None:
        values = [metric.compute(self._sum_over_processes) for metric in self.metrics]
        self._log_means({key: value for found in values for key, value in found.items()}, stage)
        self.validated_at = self.global_step

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test")

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum").to(values.device)

    def _log_means(self, metrics: dict[str, Tensor], stage: str) -> None:
        named = {f"{stage}/{key}": float(value) for key, value in metrics.items()}
        self.log_dict(named, logger=False)  # for early stopping; the record gets the true step below
        self._record(named, self.global_step)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics({**metrics, "epoch": self.current_epoch}, step=step)

    def _check_finite(self, terms: dict[str, Tensor], stage: str) -> None:
        loss = terms["loss"].item()
        if math.isfinite(loss):
            return
        values = ", ".join(f"{key}={value.item():g}" for key, value in terms.items() if key != "loss")
        raise NumericsError(
            f"{stage} loss became {loss} at step {self.global_step} of epoch {self.current_epoch} "
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
