# %% [markdown]
# # A GAN, watched at fixed latents
# The same program without an encoder: `posterior=none` leaves a generator, `objective=gan` trains it against a
# discriminator. `vae-lab experiment=gan_mnist` is the same from the command line.
# %%
import os

import numpy as np
import torch
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as dataset=digits trainer.max_epochs=1

run = vae_lab.train(["experiment=gan_mnist", "trainer.max_epochs=5", "logger=none", *QUICK])
# %% [markdown]
# Lower is not better in a game of two: a loss says who is winning, not how good the images are. Where neither wins, the
# generator's is log 2 = 0.69, and the discriminator's, of images and samples together, twice that.
# %%
run.metrics[["train/generator_loss", "train/discriminator_loss"]].dropna()
# %% [markdown]
# So look at images. The same latents are decoded after every epoch: `training.gif` in the run's folder shows them, and
# `training.npz` holds them. A row for each epoch, the first before any training. After five they are strokes, of which
# few can be read; after the 20 of the recipe, more than half:
# %%
with np.load(run.folder / "pictures" / "training.npz") as file:
    epochs = [torch.from_numpy(file[name][:12]) / 255 for name in sorted(file, key=int)]
Image.fromarray(pictures.grid(torch.cat(epochs), 12))
# %% [markdown]
# Latents between two draws are images, too, though nobody told the generator so.
# %%
start, end = run.vae.prior.sample(8).split(4)
walk = torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, 12)[:, None])
Image.fromarray(pictures.grid(run.decode(walk.flatten(0, 1)), 12))
