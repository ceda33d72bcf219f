"""Likelihoods p(x given z): from raw decoder outputs to a distribution over images.

The names that a likelihood must have are in `vae_lab.models`. Shapes: B batch, C channels, H height, W width; `...`
stands for any leading axes, such as S samples of z. Images `x` are floats in [0, 1]; `params` are raw decoder outputs,
P for each channel. One that learns something is a module, of which the model holds the parameters.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


def check_unit(loss: str, x: Tensor) -> None:
    """Raise a ValueError that names the loss, if a pixel lies outside [0, 1]."""
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"loss={loss} needs pixels in [0, 1], got {low:g} to {high:g}")


def check_finite(loss: str, x: Tensor) -> None:
    """Raise a ValueError that names the loss, if a pixel is NaN or infinite."""
    if not x.isfinite().all():
        raise ValueError(f"loss={loss} needs finite pixels, got NaN or infinity")


def soft_floor(values: Tensor, least: float) -> Tensor:
    """Bound from below, smoothly, so that what lies far below the bound still learns: least + softplus(v - least)."""
    return least + F.softplus(values - least)


class Bernoulli:
    """Each pixel is an independent coin whose log-odds the decoder emits.

    On pixels between 0 and 1 log_prob is the negative cross-entropy, which is not a density of x: such values can be
    compared with each other, but not with those of binarized images.

    Source: Kingma and Welling 2014, appendix C.
    """

    params_per_channel = 1

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        nll = F.binary_cross_entropy_with_logits(params.float(), x.expand_as(params), reduction="none")
        return -nll.sum((-3, -2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z] in [0, 1], (..., C, H, W)."""
        return params.float().sigmoid()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, zeros and ones, (..., C, H, W)."""
        return self.mean(params).bernoulli()

    def check(self, x: Tensor) -> None:
        """Refuse pixels for which the cross-entropy would be unbounded below, silently; see `check_unit`."""
        check_unit("bce", x)


class Gaussian:
    """Each pixel is N(mean, 1/2), so that -log p(x given z) is the sum of squared errors plus (C H W / 2) log pi."""

    params_per_channel = 1

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        squared_error = F.mse_loss(params.float(), x.expand_as(params), reduction="none").sum((-3, -2, -1))
        return -squared_error - 0.5 * math.log(math.pi) * x[0].numel()

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z], unbounded, (..., C, H, W)."""
        return params.float()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, unbounded, (..., C, H, W)."""
        return params.float() + math.sqrt(0.5) * torch.randn_like(params, dtype=torch.float32)

    def check(self, x: Tensor) -> None:
        """Accept every finite image; see `check_finite`."""
        check_finite("mse", x)


class LearnedGaussian(nn.Module):
    """Each pixel is N(mean, sigma^2), sigma learned: the same for all pixels, or emitted by the decoder for each.

    -log p(x given z) = sum ((x - mean)^2 / (2 sigma^2) + log sigma + (log 2 pi) / 2)

    A density: where sigma is small, -log p is negative. At the shared sigma that fits best, sigma^2 is the mean squared
    error over all pixels of the training images.

    Args:
        per_pixel: whether the decoder emits log sigma for each pixel, beside the mean.
        min_sigma: lower bound of sigma, > 0. Pixels that are reconstructed exactly, such as a black border, would
            drive sigma to 0 and the density to infinity.

    Raises:
        ValueError: if the bound is not above 0.

    Source: Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders", sigma-VAE.
    """

    def __init__(self, per_pixel: bool, min_sigma: float):
        super().__init__()
        if not 0 < min_sigma < float("inf"):
            raise ValueError(f"loss.likelihood.min_sigma must be > 0 and finite, got {min_sigma}")
        self.params_per_channel = 2 if per_pixel else 1
        self.least = math.log(min_sigma)
        if not per_pixel:
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # before the bound; about the deviation of pixels

    def mean_and_log_sigma(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Both in float32, (..., C, H, W) or one log sigma for all."""
        mean, *emitted = params.float().chunk(self.params_per_channel, dim=-3)
        return mean, soft_floor(emitted[0] if emitted else self.log_sigma, self.least)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, P*C, H, W) -> (..., B)."""
        mean, log_sigma = self.mean_and_log_sigma(params)
        squares = (x - mean).square() * torch.exp(-2 * log_sigma)
        return -(0.5 * (squares + LOG_2PI) + log_sigma).sum((-3, -2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z], unbounded, (..., C, H, W)."""
        return self.mean_and_log_sigma(params)[0]

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, unbounded, (..., C, H, W)."""
        mean, log_sigma = self.mean_and_log_sigma(params)
        return mean + log_sigma.exp() * torch.randn_like(mean)

    def check(self, x: Tensor) -> None:
        """Accept every finite image; see `check_finite`."""
        check_finite("gaussian", x)


class OptimalGaussian(nn.Module):
    """Each pixel is N(mean, sigma^2) with the sigma^2 that fits best: the mean squared error.

    In training it is that of the batch, over all its pixels, which turns the loss into (C H W / 2) log MSE plus a
    constant. Where x decides on sigma, p(x given z) is no density; so evaluation takes the running average of
    training, which does not depend on how images are batched either. No gradient goes through sigma: it is 0 where
    sigma is optimal.

    Source: Rybkin et al. 2021, optimal sigma-VAE, whose code takes the MSE over the batch, too.
    """

    params_per_channel = 1
    momentum = 0.1  # of the running average, as in batch normalisation
    least = 1e-6  # of the variance, about (e^-7)^2: below the rounding of pixels

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))
        self.variance: Tensor

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        squared_error = F.mse_loss(params.float(), x.expand_as(params), reduction="none")
        variance = self.variance
        if self.training:
            variance = squared_error.detach().mean().clamp(min=self.least)
            self.variance.lerp_(variance, self.momentum)
        return -0.5 * (squared_error / variance + variance.log() + LOG_2PI).sum((-3, -2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z], unbounded, (..., C, H, W)."""
        return params.float()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z with the average sigma, unbounded, (..., C, H, W)."""
        return params.float() + self.variance.sqrt() * torch.randn_like(params, dtype=torch.float32)

    def check(self, x: Tensor) -> None:
        """Accept every finite image; see `check_finite`."""
        check_finite("optimal_sigma", x)


class Laplace:
    """Each pixel is Laplace(mean, scale): -log p is the sum of absolute errors / scale, plus C H W log(2 scale).

    Args:
        scale: the mean absolute error that a pixel is expected to have, > 0.

    Raises:
        ValueError: if the scale is not above 0.
    """

    params_per_channel = 1

    def __init__(self, scale: float):
        if not 0 < scale < float("inf"):
            raise ValueError(f"loss.likelihood.scale must be > 0 and finite, got {scale}")
        self.scale = scale

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        absolute_error = F.l1_loss(params.float(), x.expand_as(params), reduction="none").sum((-3, -2, -1))
        return -absolute_error / self.scale - math.log(2 * self.scale) * x[0].numel()

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z], unbounded, (..., C, H, W)."""
        return params.float()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, unbounded, (..., C, H, W)."""
        first, second = torch.empty(2, *params.shape, device=params.device).exponential_()
        return params.float() + self.scale * (first - second)  # of two exponentials

    def check(self, x: Tensor) -> None:
        """Accept every finite image; see `check_finite`."""
        check_finite("laplace", x)


class ContinuousBernoulli:
    """Each pixel has the density C(p) p^x (1 - p)^(1 - x) on [0, 1], of which the decoder emits l = log(p / (1 - p)).

    C(p) = 2 artanh(1 - 2 p) / (1 - 2 p) = l / tanh(l / 2), and C(1/2) = 2

    It is the cross-entropy of `Bernoulli` with what makes it integrate to 1. p is not the mean.

    Source: Loaiza-Ganem and Cunningham 2019, "The continuous Bernoulli".
    """

    params_per_channel = 1
    near = 0.1  # |l| below which series take the place of what cancels; their error is below float32's rounding

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        nll = F.binary_cross_entropy_with_logits(params.float(), x.expand_as(params), reduction="none")
        logits, squared, is_near = self._safe(params)
        log_c = torch.log(logits / torch.tanh(logits / 2))
        series = math.log(2) + squared / 12 - 7 * squared.square() / 1440
        return (torch.where(is_near, series, log_c) - nll).sum((-3, -2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z] = 1 / (1 - exp(-l)) - 1 / l, in [0, 1], (..., C, H, W)."""
        logits, squared, is_near = self._safe(params)
        series = 0.5 + params.float() * (1 / 12 - squared / 720)
        return torch.where(is_near, series, -1 / torch.expm1(-logits) - 1 / logits)

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z by the inverse of its distribution function, in [0, 1], (..., C, H, W)."""
        logits, _, is_near = self._safe(params)
        u = torch.rand_like(logits)
        x = torch.logaddexp(torch.log1p(-u), u.log() + logits) / logits
        return torch.where(is_near, u + params.float() * u * (1 - u) / 2, x).clamp(0, 1)

    def check(self, x: Tensor) -> None:
        """Refuse pixels outside the support; see `check_unit`."""
        check_unit("continuous_bernoulli", x)

    def _safe(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits that are not near 0 (1 in their place), squares of those that are (else 0), and which are."""
        logits = params.float()
        is_near = logits.abs() < self.near
        return torch.where(is_near, 1, logits), torch.where(is_near, logits, 0).square(), is_near


class DiscretizedLogistic(nn.Module):
    """Each value of a channel is one of 256 levels, with the probability that a mixture of logistics gives its cell.

    P(x) = sum_k w_k (F((x + 1/510 - mean_k) / s_k) - F((x - 1/510 - mean_k) / s_k)), F the logistic function

    The cells of the levels 0 and 1 reach to infinity, so that the probabilities sum to 1. The decoder emits, for each
    component, the mean and log s on a scale from -1 to 1, and where there are several log w. Given z, the channels of
    a pixel are independent, each with a mixture of its own; the paper's share w, and a mean depends on the channels
    before.

    Args:
        num_components: logistics in the mixture, >= 1.

    Raises:
        ValueError: if there is no component.

    Source: Salimans et al. 2017, "PixelCNN++", eqs. 1 and 2; the bound of log s is that of their code.
    """

    num_levels = 256
    least = -7.0  # of log s

    def __init__(self, num_components: int):
        super().__init__()
        if num_components < 1:
            raise ValueError(f"loss.likelihood.num_components must be >= 1, got {num_components}")
        self.num_components = num_components
        self.params_per_channel = 2 if num_components == 1 else 3 * num_components

    def components(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and scales in pixels' units, each (..., K, C, H, W), float32."""
        params = params.float().unflatten(-3, (self.params_per_channel, -1))
        means, log_scales, *logits = params.split(self.num_components, dim=-4)
        log_weights = logits[0].log_softmax(-4) if logits else torch.zeros_like(means)
        return log_weights, (means + 1) / 2, soft_floor(log_scales, self.least).exp() / 2

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log P(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, P*C, H, W) -> (..., B)."""
        log_weights, means, scales = self.components(params)
        x, width = x.unsqueeze(-4), 1 / (self.num_levels - 1)
        upper, lower = (x + width / 2 - means) / scales, (x - width / 2 - means) / scales
        # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)), whose logarithm needs no difference of numbers near 1
        is_first, is_last = x < width / 2, x > 1 - width / 2
        log_cell = torch.where(is_last, 0, F.logsigmoid(upper)) + torch.where(is_first, 0, F.logsigmoid(-lower))
        log_cell = log_cell + torch.where(is_first | is_last, 0, torch.log(-torch.expm1(-width / scales)))
        return (log_weights + log_cell).logsumexp(-4).sum((-3, -2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z] before the cut into levels, in [0, 1], (..., C, H, W); it is off by half a level at most."""
        log_weights, means, scales = self.components(params)
        clipped = scales * (F.softplus(means / scales) - F.softplus((means - 1) / scales))  # mean of a clipped logistic
        return (log_weights.exp() * clipped).sum(-4).clamp(0, 1)

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, one of the 256 levels from 0 to 1, (..., C, H, W)."""
        log_weights, means, scales = self.components(params)
        gumbel = -torch.empty_like(log_weights).exponential_().log()
        chosen = (log_weights + gumbel).argmax(-4, keepdim=True)
        mean, scale = (values.gather(-4, chosen).squeeze(-4) for values in (means, scales))
        x = mean + scale * torch.rand_like(mean).logit(1e-6)
        return (x.clamp(0, 1) * (self.num_levels - 1)).round() / (self.num_levels - 1)

    def check(self, x: Tensor) -> None:
        """Refuse pixels that are none of the levels.

        Raises:
            ValueError: if a pixel lies outside [0, 1] or between two levels.
        """
        check_unit("discretized_logistic", x)
        levels = x * (self.num_levels - 1)
        if (levels - levels.round()).abs().max() > 1e-3:
            raise ValueError(f"loss=discretized_logistic needs pixels that are one of {self.num_levels} levels")
