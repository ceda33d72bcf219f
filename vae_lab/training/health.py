"""The callback that warns of training that goes on but learns nothing."""

import logging

from lightning.pytorch import Callback

log = logging.getLogger(__name__)
COLLAPSED_KL = 0.01  # nats for each latent

COLLAPSE = (
    "posterior collapse at step %d: 0/%d active units, KL %.2g nats per image, the latents say nothing of the image; "
    "lower loss.KLD_weight, or raise loss.warmup_steps or loss.free_bits"
)
CLAMPED = (
    "log_var of %.3g latents per image lies on its bound at step %d, where it learns nothing; "
    "lower optimizer.lr, or set trainer.gradient_clip_val=1.0"
)


class Watch(Callback):
    """Looks at the metrics of every validation, and at the last ones of training; each warning comes once."""

    def __init__(self):
        self.told: set[str] = set()

    def on_validation_end(self, trainer, lit) -> None:
        if not trainer.sanity_checking:
            self._look(trainer, lit, "val")

    def on_train_end(self, trainer, lit) -> None:
        self._look(trainer, lit, "train")

    def _look(self, trainer, lit, stage: str) -> None:
        seen = {key: float(trainer.callback_metrics.get(f"{stage}/{key}", "nan")) for key in ("kl", "clamped")}
        step, latent_dim = trainer.global_step, lit.vae.latent_dim
        if trainer.callback_metrics.get(f"{stage}/active_units") == 0 and seen["kl"] < COLLAPSED_KL * latent_dim:
            self._tell(COLLAPSE, step, latent_dim, seen["kl"])
        if seen["clamped"] > 0:
            self._tell(CLAMPED, seen["clamped"], step)

    def _tell(self, message: str, *values: float) -> None:
        if message not in self.told:
            self.told.add(message)
            log.warning(message, *values)
