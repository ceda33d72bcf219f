# %% [markdown]
# # Two latents, and the weight of the KL
# With two latents all that a model knows can be drawn on a sheet. `loss.KLD_weight` trades how much the codes tell of
# an image against how close they stay to the prior; 1 is the bound on log p(x).
# %%
import os

import numpy as np
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as dataset=digits trainer.max_epochs=1

settings = ["experiment=mlp_vae_mnist", "trainer.max_epochs=5", "logger=none"]
settings += ["callbacks.summary=null"]
runs = [vae_lab.train([*settings, f"loss.KLD_weight={weight}", *QUICK]) for weight in (0.1, 1, 10)]
# %% [markdown]
# A smaller weight buys a better reconstruction with a larger KL. The ELBO, which counts both fully, is best near 1.
# %%
found = vae_lab.compare(runs, metrics=["elbo", "reconstruction", "kl", "mse"])
found.table
# %%
found.plane("val/reconstruction")
# %% [markdown]
# The codes of validation images, coloured by the digit. At a small weight they spread far beyond the prior, whose 95 %
# lie within a distance of 2.4; at a large one the digits overlap.
# %%
Image.fromarray(pictures.beside([np.asarray(run.picture("latents")) for run in runs]))
# %% [markdown]
# The manifold: what the decoder makes of each place on the sheet, at quantiles of the prior.
# %%
runs[1].picture("manifold")
