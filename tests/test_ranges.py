"""Every number of a part has a range, and what is out of it is named as it is typed."""

import math

import pytest
from torch.nn import Identity
from tracking import tracker

from vae_lab.data.sprites import Sprites
from vae_lab.evaluation.gallery import Gallery
from vae_lab.metrics.samples import Samples
from vae_lab.models.flows import InverseAutoregressive, Planar, Radial
from vae_lab.models.hierarchical import HierarchicalGaussian, HierarchicalPrior
from vae_lab.models.likelihoods import DiscretizedLogistic, Laplace, LearnedGaussian
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import Flow, Mixture, Vamp
from vae_lab.models.quantizers import FiniteScalarQuantizer, GumbelSoftmax, VectorQuantizer
from vae_lab.models.spheres import VonMisesFisher
from vae_lab.objectives.adversarial import AAE, VAEGAN, Factor
from vae_lab.objectives.disentanglement import DIP, BetaTC, Capacity
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.importance import CIWAE, IWAE, MIWAE
from vae_lab.objectives.mmd import InfoVAE, WassersteinMMD
from vae_lab.objectives.perceptual import VGG, FeatureDistance
from vae_lab.objectives.regularized import RAE
from vae_lab.runs.checkpoints import Checkpoints
from vae_lab.training.schedules import Cosine, Step

RANGES = [
    *((lambda value=value: Gaussian(value), rf"posterior\.max_log_var must be in \(0, 80\], got {value}")
      for value in (0, -1.0, math.nan)),
    (lambda: Planar(0, 20.0), r"posterior\.num_maps must be >= 1, got 0"),
    (lambda: Radial(1, 0.0), r"posterior\.max_log_var must be in \(0, 80\], got 0"),
    (lambda: InverseAutoregressive(2, 1, 0, 20.0), r"posterior\.hidden_dim must be >= 1, got 0"),
    *((lambda top=top: HierarchicalGaussian(5, top, 8), rf"posterior\.top_dim must be in \[1, latent_dim\), got {top}")
      for top in (0, 5)),
    (lambda: HierarchicalPrior((1,), None, 8), r"prior\.top_dim must be in \[1, latent_dim\), got 0 of latent_dim=1"),
    (lambda: VectorQuantizer(1, 4, 0.25, 0.99, 0.1), r"posterior\.num_codes must be >= 2 and finite, got 1"),
    (lambda: VectorQuantizer(16, 0, 0.25, 0.99, 0.1), r"posterior\.code_dim must be >= 1 and finite, got 0"),
    (lambda: VectorQuantizer(16, 4, -1.0, 0.99, 0.1), r"posterior\.commitment must be >= 0 and finite, got -1"),
    (lambda: VectorQuantizer(16, 4, 0.25, 1.0, 0.1), r"posterior\.decay must be in \[0, 1\), got 1"),
    (lambda: VectorQuantizer(16, 4, 0.25, 0.99, math.nan), r"posterior\.revive_below must be in \[0, 1\), got nan"),
    (lambda: VectorQuantizer(16, 3, 0.25, 0.99, 0.1).prior((8,)), r"code_dim must divide latent_dim=8, got 3"),
    (lambda: FiniteScalarQuantizer([]), r"posterior\.levels must hold numbers >= 2, got \[\]"),
    (lambda: FiniteScalarQuantizer([5, 1]), r"posterior\.levels must hold numbers >= 2, got \[5, 1\]"),
    (lambda: FiniteScalarQuantizer([2] * 31), r"posterior\.levels must have a product below"),
    (lambda: FiniteScalarQuantizer([3, 3]).prior((5,)), r"latent_dim must be a multiple of 2, .* got 5"),
    (lambda: GumbelSoftmax(1, 1, 1, 1), r"posterior\.num_categories must be >= 2, got 1"),
    (lambda: GumbelSoftmax(2, 1, 0, 1), r"posterior\.final_temperature must be > 0 and finite, got 0"),
    (lambda: GumbelSoftmax(2, 1, 1, -1), r"posterior\.anneal_steps must be >= 0, got -1"),
    (lambda: GumbelSoftmax(3, 1, 1, 1).prior((4,)), r"posterior\.num_categories must divide latent_dim=4, got 3"),
    (lambda: VonMisesFisher(1e4).prior((1,)), r"latent_dim must be >= 2 for a sphere \(posterior=vmf\), got 1"),
    (lambda: VonMisesFisher(0.0), r"posterior\.max_concentration must be in \(1, 1e6\], got 0"),
    (lambda: Flow((1,), 2, 8), r"latent_dim must be >= 2 with prior=flow.*got 1"),
    (lambda: Flow((2,), 0, 8), r"prior\.couplings must be >= 1, got 0"),
    (lambda: Mixture((2,), 0), r"prior\.components must be >= 1, got 0"),
    (lambda: Vamp((2,), 0), r"prior\.components must be >= 1, got 0"),
    (lambda: LearnedGaussian(False, 0.0), r"loss\.likelihood\.min_sigma must be > 0 and finite, got 0\.0"),
    (lambda: Laplace(-1.0), r"loss\.likelihood\.scale must be > 0 and finite, got -1\.0"),
    (lambda: DiscretizedLogistic(0), r"loss\.likelihood\.num_components must be >= 1, got 0"),
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
    (lambda: Sprites((1, 64, 64), 4, 8, 0), "positions must be an integer >= 1, got 0"),
    (lambda: Samples(["is"], 100), r"metrics\.samples\.scores must be of fid"),
    (lambda: Samples(["fid"], 3), r"metrics\.samples\.num_images must be >= 20, got 3"),
    (lambda: Samples(["fid"], 100, "inception", "/nowhere"), r"metrics\.samples\.weights must be a file"),
    (lambda: Cosine(-1, 0.0), r"optimizer\.schedule\.warmup_steps must be a whole number >= 0, got -1"),
    *((lambda end=end: Cosine(0, end), rf"optimizer\.schedule\.final_fraction must be in \[0, 1\], got {end}")
      for end in (-0.1, math.nan)),
    (lambda: Step(0, 0, 0.5), r"optimizer\.schedule\.step_size must be >= 1, got 0"),
    (lambda: Step(0, 1, 0.0), r"optimizer\.schedule\.gamma must be in \(0, 1\], got 0.0"),
    (lambda: Checkpoints("val/loss", "least", 10), r"checkpoints\.mode must be min, max or last, got 'least'"),
    (lambda: Checkpoints("val/loss", "min", 10, 0), r"callbacks\.checkpoints\.every_n_epochs must be >= 1, got 0"),
    (lambda: Checkpoints("val/loss", "min", 10, None, -1), r"callbacks\.checkpoints\.keep must be >= 1, got -1"),
    *((lambda rate=rate: Checkpoints("val/loss", "min", rate), rf"checkpoints\.every_n_minutes must be > 0, got {rate}")
      for rate in (0, math.nan)),
    (lambda: Gallery(0, 1, None, 0), r"callbacks\.gallery\.num_images must be >= 1, got 0"),
    (lambda: Gallery(1, 0, None, 0), r"callbacks\.gallery\.every_n_epochs must be >= 1, got 0"),
    (lambda: Gallery(1, 1, 0, 0), r"callbacks\.gallery\.scatter_every_n_steps must be >= 1, got 0"),
    (lambda: Gallery(1, 1, None, -1), r"callbacks\.gallery\.scatter_until_step must be >= 0, got -1"),
    (lambda: tracker("x", mode="onlin"), r"wandb\.mode must be one of auto, online, offline, disabled, got 'onlin'"),
    *((lambda time=time: tracker("x", init_timeout=time), rf"logger\.wandb\.init_timeout must be > 0, got {time}")
      for time in (0, math.nan)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), RANGES)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
