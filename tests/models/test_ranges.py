"""Every number of a part has a range, and what is out of it is named as it is typed."""

import math

import pytest

from vae_lab.models.flows import InverseAutoregressive, Planar, Radial
from vae_lab.models.hierarchical import HierarchicalGaussian, HierarchicalPrior
from vae_lab.models.likelihoods import DiscretizedLogistic, Laplace, LearnedGaussian
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import Flow, Mixture, Vamp
from vae_lab.models.quantizers import FiniteScalarQuantizer, GumbelSoftmax, VectorQuantizer
from vae_lab.models.spheres import VonMisesFisher

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
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), RANGES)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
