# %% [markdown]
# # A fully connected VAE
# Squared errors and a KL weighted as in a Lightning tutorial, on MNIST: what it reconstructs, and what it dreams up.
# `vae-lab experiment=mlp_vae_mnist_mse` is the same from the command line.
# %%
import os

import numpy as np
import torch
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as dataset=digits trainer.max_epochs=1

run = vae_lab.train(["experiment=mlp_vae_mnist_mse", "trainer.max_epochs=5", "logger=none", *QUICK])
# %% [markdown]
# The values are in nats per image: how well an image is told by its code, and what the code costs.
# %%
run.metrics[["val/elbo", "val/reconstruction", "val/kl", "val/mse"]].dropna()
# %% [markdown]
# Images that training never saw, above what the decoder makes of their codes.
# %%
run.picture("reconstructions")
# %% [markdown]
# Of 128 latents the model uses a few: the KL of the others is nearly zero, and their codes are the same for all images.
# %%
images = run.data.to_pixels(run.data.splits["test"][:1000]).x
deviations = np.sort(run.encode(images.numpy()).std(0))[::-1]
print(f"{(deviations > 0.1).sum()} of {len(deviations)} latents vary, the first by {deviations[:5].round(2)}")
# %% [markdown]
# A walk from one image to another through the codes, and images from the prior. The weight of the KL is below 1, so
# that the codes are not quite where the prior is, and samples are less clear than reconstructions.
# %%
start, end = run.encode(images[:2])
walk = torch.lerp(start, end, torch.linspace(0, 1, 12)[:, None])
Image.fromarray(pictures.grid(torch.cat([run.decode(walk), run.sample(24, seed=0)]), 12))
