"""The callback that warns of settings that do not fit the images, and of training that goes on but learns nothing."""

import logging
import math
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from vae_lab.data.batches import Batch, ImageData
from vae_lab.models.likelihoods import Bernoulli, Gaussian

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

NUM_LOOKED_AT = 256  # images
DARK = 0.1  # largest pixel
DARK_PIXELS = (
    "the pixels of the first %d training images reach only from %.3g to %.3g of 1: the images may have been scaled "
    "twice, or hold labels; bring their bytes to 0 ... 255"
)
TWO_VALUES = (
    "the pixels are 0 or 1, but loss.likelihood %s is of what lies between as well, and its -log p says little of "
    "them; choose loss=bce, or dataset.binarize=none"
)
NEAR = 0.02  # of a weight to what a habit makes it
HABIT = (
    "loss.KLD_weight=%.3g is about %s, as belongs to a loss that is a mean over %s; here it is a sum over pixels and a "
    "mean over images, whatever the size of batch and image: 1 is the ELBO"
)
HEAVY = (
    "loss.KLD_weight=%.3g is more than the %d numbers of an image: the latents can say nothing that is worth it, and "
    "will collapse; 1 is the ELBO"
)
LONELY = (
    "batch normalisation with dataset.batch_size=1 normalises each image by itself in training, and by other "
    "statistics in evaluation; raise dataset.batch_size, or choose model.norm=group"
)
SURE_LOGIT, WRONG_SHARE = 15.0, 0.01
SATURATED = (
    "the decoder is sure of what is wrong at step %d: %.2g %% of the pixels have logits beyond 15 on the wrong side; "
    "lower optimizer.lr, or set trainer.gradient_clip_val=1.0"
)


class Health(Callback):
    """Looks at every validation, and tells each thing that is wrong once, and again at the end if it still is.

    A young posterior always looks collapsed: a collapse is told when the warm-up is over and the KL has been next to
    nothing, and has not risen, for several validations.
    """

    def __init__(self):
        self.told_at: dict[str, int] = {}  # message -> step
        self.warnings: dict[str, str] = {}  # what was told, each kind of message with its latest words
        self.kls: list[float] = []  # of the latest validations, as long as none has an active unit
        self.num_narrow = 0  # latest validations in which next to none of the codes were used

    def on_train_start(self, trainer: Trainer, lit: LightningModule) -> None:
        for key, part in (("loss", lit.objective), ("optimizer.schedule", lit.schedule)):
            if (steps := getattr(part, "warmup_steps", 0)) > lit.total_steps:
                self._tell(ENDLESS, key, steps, lit.total_steps)
        for message, *values in misfits(lit, trainer.datamodule):
            self._tell(message, *values)

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
        wrong = wrong_share(lit, trainer)
        if wrong > WRONG_SHARE and SATURATED not in self.told_at:
            self.told_at[SATURATED] = trainer.global_step
            self._tell(SATURATED, trainer.global_step, 100 * wrong)
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
            self._tell(CLAMPED, clamped, step)
        for player in ("generator", "discriminator"):
            loss = float(trainer.callback_metrics.get(f"{'val' if is_validated else 'train'}/{player}_loss", "nan"))
            if loss < WON_LOSS and is_news(self.told_at.get(player)):
                self.told_at[player] = step
                self._tell(WON, player, step, loss)
        if is_validated and self.num_narrow >= num_validations and is_news(self.told_at.get(CODEBOOK_COLLAPSE)):
            self.told_at[CODEBOOK_COLLAPSE] = step
            found = [float(trainer.callback_metrics[f"val/{key}"]) for key in ("perplexity", "dead_codes")]
            self._tell(CODEBOOK_COLLAPSE, step, found[0], lit.vae.posterior.num_codes, found[1])
        if not is_validated or len(self.kls) < num_validations:
            return
        is_rising = self.kls[-1] > max(2 * min(self.kls), RISING_KL * lit.vae.latent_dim)
        if not is_rising and is_news(self.told_at.get(COLLAPSE)):
            self.told_at[COLLAPSE] = step
            self._tell(COLLAPSE, step, lit.vae.latent_dim, self.kls[-1])

    def _tell(self, message: str, *values: object) -> None:
        self.warnings[message] = message % values
        log.warning(message, *values)


def misfits(lit: LightningModule, data: ImageData) -> list[tuple]:
    """What of the settings does not fit the images, as messages and their values."""
    found: list[tuple] = []
    x, y = data.splits["train"].__getitems__(range(min(NUM_LOOKED_AT, len(data.splits["train"]))))
    x = x.gt(127).float() if data.binarize == "dynamic" else data.to_pixels(Batch(x, y), training=False).x
    if x.max() < DARK or x.min() == x.max():
        found.append((DARK_PIXELS, len(x), x.min().item(), x.max().item()))
    elif not isinstance(lit.vae.likelihood, Bernoulli | Gaussian) and ((x == 0) | (x == 1)).all():
        found.append((TWO_VALUES, type(lit.vae.likelihood).__name__))
    weight, num_pixels = getattr(lit.objective, "kld_weight", 1), math.prod(data.image_shape)
    share = data.batch_size / len(data.splits["train"])
    for usual, words, over in ((1 / num_pixels, "1 / pixels", "pixels"), (share, "batch size / images", "batches")):
        if weight < 0.5 and abs(weight / usual - 1) < NEAR:
            found.append((HABIT, weight, words, over))
    if weight > num_pixels:
        found.append((HEAVY, weight, num_pixels))
    if data.batch_size == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in lit.vae.modules()):
        found.append((LONELY,))
    return found


def wrong_share(lit: LightningModule, trainer: Trainer) -> float:
    """The share of pixels of validation images of whose opposite a Bernoulli decoder is sure; 0 of another one."""
    vae = lit.vae
    if not isinstance(getattr(vae, "likelihood", None), Bernoulli) or vae.encoder is None:
        return 0.0
    x, y = trainer.datamodule.examples("val", NUM_LOOKED_AT)
    x, y = x.to(next(vae.parameters())), y.to(lit.device) if vae.num_classes else None
    with torch.no_grad():
        logits = vae.decode(vae.encode(x, y).mean, y).float()
    return ((logits.abs() > SURE_LOGIT) & ((logits.sigmoid() - x).abs() > 0.5)).float().mean().item()
