# %% [markdown]
# # A plain autoencoder, and what it lacks
# A convolutional autoencoder with two codes, on Fashion-MNIST, as in a PyTorch tutorial: where its codes lie, and why
# a random code is not an image. `vae-lab experiment=conv_autoencoder_fashion_mnist` is the same from the command line.
# %%
import os

import torch
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as dataset=digits trainer.max_epochs=1

run = vae_lab.train(["experiment=conv_autoencoder_fashion_mnist", "trainer.max_epochs=3", "logger=none", *QUICK])
run.result["val/mse"]
# %% [markdown]
# The codes early in the training, and at its end, coloured by the class.
# %%
early = sorted((run.folder / "pictures" / "latents").glob("step_*.png"))
scatters = [Image.open(path) for path in (early[0], early[-1])] + [run.picture("latents")]
Image.fromarray(pictures.beside([pictures.np.asarray(scatter) for scatter in scatters]))
# %% [markdown]
# Nothing keeps the codes near a law that is known, so that there is no prior to draw from:
# %%
try:
    run.sample(10)
except ValueError as error:
    print(error)
# %% [markdown]
# What can be done is to learn where the codes are, afterwards: a mixture of Gaussians, fitted to those of the training
# images. First row: random points of the square in which the codes lie. Second row: draws from the mixture.
# %%
codes = run.encode(run.data.to_pixels(run.data.splits["train"][:2000]).x)
low, high = codes.amin(0), codes.amax(0)
anywhere = low + (high - low) * torch.rand(10, 2, generator=torch.Generator().manual_seed(0))
Image.fromarray(pictures.grid(torch.cat([run.decode(anywhere), run.sample(10, seed=0, sampler="mixture")]), 10))
