"""The callback that warns of training that goes on but learns nothing."""

import logging
from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
COLLAPSED_KL = 0.01  # nats for each latent
COLLAPSED_USE = 0.03  # perplexity for each code of a book
NUM_DURING, NUM_AT_END = 10, 3  # validations that tell a collapse from a slow start
RISING_KL = 0.001  # nats for each latent; a KL above that, and above twice its smallest value, is on its way up

COLLAPSE = (
    "posterior collapse at step %d: 0/%d active units, KL %.2g nats per image, the latents say nothing of the image; "
    "lower loss.KLD_weight, or raise loss.warmup_steps or loss.free_bits"
)
WON_LOSS = 0.05  # nats per image, over a validation
WON = (
    "the %s has won at step %d: its loss is %.2g, so the other player learns nothing from it; "
    "choose a weaker objective.adversary, or another optimizer.lr or model"
)
CODEBOOK_COLLAPSE = (
    "codebook collapse at step %d: perplexity %.3g of %d codes, %d of them never used; "
    "take fewer or smaller codes, lower optimizer.lr, or with posterior=vq raise posterior.revive_below"
)
CLAMPED = (
    "log_var of %.3g latents per image lies on its bound at step %d, where it learns nothing; "
    "lower optimizer.lr, or set trainer.gradient_clip_val=1.0"
)
ENDLESS = "%s.warmup_steps=%d is longer than the run, whose %d steps never reach the end of the warm-up"


class Health(Callback):
    """Looks at every validation, and tells each thing that is wrong once, and again at the end if it still is.

    A young posterior always looks collapsed: a collapse is told when the warm-up is over and the KL has been next to
    nothing, and has not risen, for several validations.
    """

    def __init__(self):
        self.told_at: dict[str, int] = {}  # message -> step
        self.kls: list[float] = []  # of the latest validations, as long as none has an active unit
        self.num_narrow = 0  # latest validations in which next to none of the codes were used

    def on_train_start(self, trainer: Trainer, lit: LightningModule) -> None:
        for key, part in (("loss", lit.objective), ("optimizer.schedule", lit.schedule)):
            if (steps := getattr(part, "warmup_steps", 0)) > lit.total_steps:
                log.warning(ENDLESS, key, steps, lit.total_steps)

    def on_validation_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        kl, active = (float(trainer.callback_metrics.get(f"val/{key}", "nan")) for key in ("kl", "active_units"))
        is_warm = trainer.global_step >= getattr(lit.objective, "warmup_steps", 0)
        is_silent = active == 0 and kl < COLLAPSED_KL * lit.vae.latent_dim
        self.kls = [*self.kls, kl][-NUM_DURING:] if is_warm and is_silent else []
        perplexity = float(trainer.callback_metrics.get("val/perplexity", "nan"))
        is_narrow = perplexity < COLLAPSED_USE * getattr(lit.vae.posterior, "num_codes", 0)
        self.num_narrow = self.num_narrow + 1 if is_narrow else 0
        self._judge(trainer, lit, NUM_DURING, lambda told_at: told_at is None)

    def on_run_end(self, trainer: Trainer, lit: LightningModule) -> None:
        self._judge(trainer, lit, NUM_AT_END, lambda told_at: told_at != trainer.global_step)

    def _judge(
        self, trainer: Trainer, lit: LightningModule, num_validations: int, is_news: Callable[[int | None], bool]
    ) -> None:
        step = trainer.global_step
        is_validated = lit.validated_at == step
        clamped = float(trainer.callback_metrics.get(f"{'val' if is_validated else 'train'}/clamped", "nan"))
        if clamped > 0 and is_news(self.told_at.get(CLAMPED)):
            self.told_at[CLAMPED] = step
            log.warning(CLAMPED, clamped, step)
        for player in ("generator", "discriminator"):
            loss = float(trainer.callback_metrics.get(f"{'val' if is_validated else 'train'}/{player}_loss", "nan"))
            if loss < WON_LOSS and is_news(self.told_at.get(player)):
                self.told_at[player] = step
                log.warning(WON, player, step, loss)
        if is_validated and self.num_narrow >= num_validations and is_news(self.told_at.get(CODEBOOK_COLLAPSE)):
            self.told_at[CODEBOOK_COLLAPSE] = step
            found = [float(trainer.callback_metrics[f"val/{key}"]) for key in ("perplexity", "dead_codes")]
            log.warning(CODEBOOK_COLLAPSE, step, found[0], lit.vae.posterior.num_codes, found[1])
        if not is_validated or len(self.kls) < num_validations:
            return
        is_rising = self.kls[-1] > max(2 * min(self.kls), RISING_KL * lit.vae.latent_dim)
        if not is_rising and is_news(self.told_at.get(COLLAPSE)):
            self.told_at[COLLAPSE] = step
            log.warning(COLLAPSE, step, lit.vae.latent_dim, self.kls[-1])
