"""Every number of an objective has a range, and what is out of it is named as it is typed."""

import math

import pytest
from torch.nn import Identity

from vae_lab.objectives.adversarial import AAE, VAEGAN, Factor
from vae_lab.objectives.disentanglement import DIP, BetaTC, Capacity
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.importance import CIWAE, IWAE, MIWAE
from vae_lab.objectives.mmd import InfoVAE, WassersteinMMD
from vae_lab.objectives.perceptual import VGG, FeatureDistance
from vae_lab.objectives.regularized import RAE

RANGES = [
    *((lambda value=value: ELBO(value, 0, 0.0), rf"loss\.KLD_weight must be >= 0 and finite, got {value}")
      for value in (-1, -0.001, math.nan, math.inf)),
    (lambda: ELBO(1.0, -1, 0.0), r"loss\.warmup_steps must be >= 0 and finite, got -1"),
    (lambda: ELBO(1.0, 0, math.nan), r"loss\.free_bits must be >= 0 and finite, got nan"),
    (lambda: ELBO(1.0, 0, 0.0, "cyclic"), r"loss\.warmup_steps must be >= 1 with objective\.warmup=cyclic, got 0"),
    (lambda: ELBO(1.0, 9, 0.0, "cyclic", cycles=0), r"objective\.cycles must be >= 1, got 0"),
    (lambda: ELBO(1.0, 9, 0.0, "cyclic", rise=0.0), r"objective\.rise must be in \(0, 1\], got 0"),
    (lambda: ELBO(1.0, 9, 0.0, cycles=2), r"objective\.cycles=2 and .*rise=0\.5 have no effect without "),
    (lambda: VAEGAN(Identity(), 1.0, 0, 0.0, -1.0, 0, False), r"objective\.adversarial_weight must be >= 0.*-1"),
    (lambda: VAEGAN(Identity(), 1.0, 0, 0.0, 1.0, -2, False), r"objective\.adversarial_start must be >= 0.*-2"),
    (lambda: AAE(Identity(), math.nan), r"objective\.adversarial_weight must be >= 0.*nan"),
    (lambda: Factor(Identity(), 1.0, 0, 0.0, -1.0), r"objective\.gamma must be >= 0.*-1"),
    (lambda: Factor(Identity(), -1.0, 0, 0.0, 1.0), r"loss\.KLD_weight must be >= 0.*-1"),
    (lambda: Capacity(-1.0, 1.0, 1), r"objective\.gamma must be >= 0 and finite"),
    (lambda: Capacity(1.0, math.inf, 1), r"objective\.capacity must be >= 0 and finite"),
    (lambda: BetaTC(1.0, math.nan, 1.0, "weighted"), r"objective\.beta must be >= 0 and finite"),
    (lambda: DIP(-1.0, 1.0, 1.0, 1), r"loss\.KLD_weight must be >= 0 and finite"),
    (lambda: DIP(1.0, -1.0, 1.0, 1), r"objective\.off_diagonal must be >= 0 and finite"),
    (lambda: IWAE(0), r"objective\.samples must be"),
    (lambda: MIWAE(0, 1), r"objective\.groups must be"),
    (lambda: MIWAE(1, 0), r"objective\.samples must be"),
    (lambda: CIWAE(1, 1.1), r"objective\.beta must be"),
    (lambda: InfoVAE(1.5, 1.0, "rbf"), r"objective\.alpha must be <= 1"),
    (lambda: InfoVAE(0.2, 0.7, "rbf"), r"objective\.lam must be >= 1 - objective\.alpha = 0\.8"),
    (lambda: WassersteinMMD(-1.0, "imq"), r"objective\.lam must be >= 0"),
    (lambda: RAE(-1.0, 0.0, "l2"), r"objective\.code_weight must be >= 0 and finite, got -1"),
    (lambda: RAE(0.0, -1.0, "l2"), r"objective\.decoder_weight must be >= 0 and finite, got -1"),
    (lambda: VGG("/nowhere"), r"features\.weights must be a file, got /nowhere.*vgg19-dcbb9e9d\.pth"),
    (lambda: FeatureDistance(math.nan, Identity()), r"objective\.perceptual\.weight must be >= 0 and finite, got nan"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), RANGES)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
