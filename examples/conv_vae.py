# %% [markdown]
# # A convolutional VAE
# Four strided convolutions and twenty latents, on MNIST at 32x32, as in a PyTorch tutorial.
# `vae-lab experiment=conv_vae_mnist` is the same from the command line.
# %%
import os

import torch
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as dataset=digits trainer.max_epochs=1

run = vae_lab.train(["experiment=conv_vae_mnist", "trainer.max_epochs=3", "logger=none", *QUICK])
# %% [markdown]
# How the training went: loss, reconstruction and KL, in nats per image.
# %%
run.picture("curves")
# %% [markdown]
# One latent at a time, from -3 to 3 standard deviations of the prior; those that vary most over images come first.
# %%
run.picture("traversals")
# %% [markdown]
# What is a mean of codes? The mean code of each digit, decoded, is a typical one; half-way between two of them lies a
# third digit, or none.
# %%
batch = run.data.to_pixels(run.data.splits["train"][:5000])
codes, digits = run.encode(batch.x), batch.y[:, 0]
means = torch.stack([codes[digits == digit].mean(0) for digit in range(10)])
half_way = (means + means.roll(-1, 0)) / 2
# %% [markdown]
# Arithmetic with codes: take a digit away and add another, and the slant of the hand stays; an unusual one is lost.
# Rows: images, the same as sevens, mean digits, those half-way between each and the next.
# %%
first = batch.x[digits == 1][:10]
as_sevens = run.encode(first) - means[1] + means[7]
Image.fromarray(pictures.grid(torch.cat([first, *(run.decode(z) for z in (as_sevens, means, half_way))]), 10))
