"""The training, validation and test steps. No maths, no config.

Metrics are named `{stage}/{key}` with the keys of the objective, in nats per image, and are means over all images of
the epoch. `train_step/{key}` is one batch, every `trainer.log_every_n_steps`. Evaluation adds `mse` (per pixel, of the
reconstruction from the posterior mean) and `active_units`.

Shapes: B batch, C channels, H height, W width, D latent_dim.
"""

import math
from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.data.batches import ImageData
from vae_lab.data.seeds import TRAIN, VALIDATION, derive_seed, seed_generators
from vae_lab.errors import DataError, NumericsError
from vae_lab.metrics.means import Means
from vae_lab.models.vae import VAE
from vae_lab.runs.checkpoints import set_position

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2: a unit is active if Var_x(E[z given x]) exceeds this


class LitVAE(LightningModule):
    """Binds a model and an objective to Lightning.

    Args:
        vae: the model.
        objective: (vae, x, step) -> dict of 0-dim tensors with at least `loss`; see `vae_lab.objectives.elbo`.
        optimizer: (parameters, lr=...) -> optimizer.
        schedule: (step, total_steps) -> factor on the learning rate, or None for a constant one.
        lr: learning rate, > 0.
        seed: of the run, >= 0.

    Raises:
        ValueError: if lr is out of range.
    """

    def __init__(self, vae: VAE, objective: Callable, optimizer: Callable, schedule, lr: float, seed: int):
        super().__init__()
        if not isinstance(lr, float | int) or not 0 < lr < float("inf"):
            raise ValueError(f"optimizer.lr must be > 0 and finite, got {lr!r}")
        self.vae = vae
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr = lr
        self.seed = seed
        self.batches_seen = 0
        self.validated_at = -1  # the step of the last validation
        self.means = Means()
        self.example_input_array = torch.zeros(2, *vae.image_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) from their posterior means."""
        return self.vae(x)

    def new_optimizers(self) -> list[torch.optim.Optimizer]:
        """One over all parameters."""
        return [self.optimizer(self.parameters(), lr=self.lr)]

    def configure_optimizers(self):
        """The optimizer and, if there is a schedule, its scheduler, stepped at every update."""
        (optimizer,) = self.new_optimizers()
        if self.schedule is None:
            return optimizer
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of a batch of bytes (B, C, H, W)."""
        # Seeded at every batch, so that a resumed run draws the same noise from here on.
        seed_generators(batch.device, derive_seed(self.seed, TRAIN, self.batches_seen, self.global_rank))
        x = self.trainer.datamodule.to_pixels(batch, training=True)
        if batch_idx == 0:
            self.vae.likelihood.check(x)
        terms = self.objective(self.vae, x, self.global_step)
        self._check_finite(terms, "train")
        self.means.add(terms, len(x))
        self.batches_seen += 1
        opens_window = batch_idx % self.trainer.accumulate_grad_batches == 0
        if opens_window and self.global_step % self.trainer.log_every_n_steps == 0:
            self._log_step(terms)
        return terms["loss"]

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self._log_means("train")

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Add a batch of bytes (B, C, H, W) to the validation means."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Add a batch of bytes (B, C, H, W) to the test means."""
        self._evaluate(batch, batch_idx, "test")

    def on_validation_epoch_start(self) -> None:
        """Start new means; those of a training epoch under way are kept apart."""
        self.evaluation, self.codes = Means(), Means()

    def on_validation_epoch_end(self) -> None:
        """Log the validation means."""
        self._log_evaluation("val")
        self.validated_at = self.global_step

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Log the test means."""
        self._log_evaluation("test")

    def _evaluate(self, batch: Tensor, batch_idx: int, stage: str) -> None:
        # The same noise at every evaluation, so that epochs and runs differ by their weights only.
        seed_generators(batch.device, derive_seed(self.seed, VALIDATION, batch_idx, self.global_rank))
        x = self.trainer.datamodule.to_pixels(batch, training=False)
        if batch_idx == 0:
            self.vae.likelihood.check(x)
        terms = self.objective(self.vae, x, None)
        self._check_finite(terms, stage)
        code = self.vae.encode(x).mean
        mse = (self.vae.generate(code) - x).square().mean()
        self.evaluation.add({**terms, "mse": mse}, len(x))
        # float64, because a variance is the small difference of two sums.
        code = code.cpu().double()
        self.codes.add({"mean": code.mean(0), "square": code.square().mean(0)}, len(x))

    def _log_evaluation(self, stage: str) -> None:
        metrics = self.evaluation.compute(self._sum_over_processes)
        codes = self.codes.compute(self._sum_over_processes)
        if self.vae.posterior.is_stochastic:
            variance = codes["square"] - codes["mean"].square()  # (D,)
            metrics["active_units"] = (variance > ACTIVE_VARIANCE).sum()
        self._log(metrics, stage)

    def _log_means(self, stage: str) -> None:
        self._log(self.means.compute(self._sum_over_processes), stage)
        self.means = Means()

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum").to(values.device)

    def _log(self, metrics: dict[str, Tensor], stage: str) -> None:
        named = {f"{stage}/{key}": float(value) for key, value in metrics.items()}
        self.log_dict(named, logger=False)  # for early stopping; the record gets the true step below
        self._record(named)

    def _log_step(self, terms: dict[str, Tensor]) -> None:
        named = {f"train_step/{key}": value.item() for key, value in terms.items()}
        self._record({**named, "train_step/lr": self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]})

    def _record(self, metrics: dict[str, float]) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics({**metrics, "epoch": self.current_epoch}, step=self.global_step)

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
        epoch, batch = self._position()
        set_position(checkpoint, epoch, batch, self.batches_seen)
        checkpoint["vae_lab"] = {
            "seed": self.seed,
            "epoch": epoch,
            "batch": batch,
            "batches_seen": self.batches_seen,
            "lr": self.lr,
            "validated_at": self.validated_at,
            "images": self.trainer.datamodule.fingerprint,
            "means": self._gathered_means(),
        }

    def _gathered_means(self) -> dict:
        """The state of the means; under several processes with one row of sums for each."""
        state = self.means.state_dict()
        if self.trainer.world_size > 1 and state["sums"] is not None:
            state["sums"] = self.all_gather(state["sums"].to(self.device)).cpu()  # (processes, keys)
        return state

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

    def _position(self) -> tuple[int, int]:
        """Epochs completed, and batches completed in the epoch after them."""
        return divmod(self.batches_seen, self.trainer.num_training_batches) if self.batches_seen else (0, 0)


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
