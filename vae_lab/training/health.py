"""The callback that warns of training that goes on but learns nothing."""

import logging

from lightning.pytorch import Callback

log = logging.getLogger(__name__)
COLLAPSED_KL = 0.01  # nats for each latent
NUM_DURING, NUM_AT_END = 10, 3  # validations that tell a collapse from a slow start
RISING_KL = 0.001  # nats for each latent; a KL above that, and above twice its smallest value, is on its way up

COLLAPSE = (
    "posterior collapse at step %d: 0/%d active units, KL %.2g nats per image, the latents say nothing of the image; "
    "lower loss.KLD_weight, or raise loss.warmup_steps or loss.free_bits"
)
CLAMPED = (
    "log_var of %.3g latents per image lies on its bound at step %d, where it learns nothing; "
    "lower optimizer.lr, or set trainer.gradient_clip_val=1.0"
)


class Health(Callback):
    """Looks at every validation, and tells each thing that is wrong once, and again at the end if it still is.

    A young posterior always looks collapsed: a collapse is told when the warm-up is over and the KL has been next to
    nothing, and has not risen, for several validations.
    """

    def __init__(self):
        self.told_at: dict[str, int] = {}  # message -> step
        self.kls: list[float] = []  # of the latest validations, as long as none has an active unit

    def on_validation_end(self, trainer, lit) -> None:
        if trainer.sanity_checking:
            return
        kl, active = (float(trainer.callback_metrics.get(f"val/{key}", "nan")) for key in ("kl", "active_units"))
        is_warm = trainer.global_step >= getattr(lit.objective, "warmup_steps", 0)
        is_silent = active == 0 and kl < COLLAPSED_KL * lit.vae.latent_dim
        self.kls = [*self.kls, kl][-NUM_DURING:] if is_warm and is_silent else []
        self._judge(trainer, lit, "val", at_end=trainer.state.fn == "validate")

    def on_train_end(self, trainer, lit) -> None:
        is_validated = lit.validated_at == trainer.global_step
        self._judge(trainer, lit, "val" if is_validated else "train", at_end=True)

    def _judge(self, trainer, lit, stage: str, at_end: bool) -> None:
        step, clamped = trainer.global_step, float(trainer.callback_metrics.get(f"{stage}/clamped", "nan"))
        if clamped > 0:
            self._tell(at_end, step, CLAMPED, clamped, step)
        if stage != "val" or len(self.kls) < (NUM_AT_END if at_end else NUM_DURING):
            return
        if self.kls[-1] <= max(2 * min(self.kls), RISING_KL * lit.vae.latent_dim):
            self._tell(at_end, step, COLLAPSE, step, lit.vae.latent_dim, self.kls[-1])

    def _tell(self, at_end: bool, step: int, message: str, *values: float) -> None:
        if message not in self.told_at or (at_end and self.told_at[message] != step):
            self.told_at[message] = step
            log.warning(message, *values)
