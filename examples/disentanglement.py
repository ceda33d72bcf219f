# %% [markdown]
# # Disentanglement
# White shapes, drawn from five factors that are known: shape, size, orientation and two positions. Does a model find
# them, one latent for each? A VAE, the same with a larger weight on the KL (beta-VAE), and one that weighs only the
# dependence between latents (beta-TC-VAE), measured with the scores of the literature.
# %%
import os

import torch
from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as trainer.max_epochs=1

settings = ["dataset=sprites", "dataset.image_size=32", "model=conv", "latent_dim=8", "metrics=factors"]
settings += ["metrics.factors.scores=[mig,dci]", "trainer.max_epochs=20", "trainer.check_val_every_n_epoch=20"]
settings += ["logger=none", "callbacks.summary=null"]
objectives = {"VAE": [], "beta-VAE": ["loss.KLD_weight=6"], "beta-TC-VAE": ["objective=beta_tc"]}
runs = [vae_lab.train([*settings, *more, *QUICK]) for more in objectives.values()]
# %% [markdown]
# `mig` and `dci` are 1 where each factor is one latent's business alone. After 20 epochs all are far from it. The
# larger weight costs most of the ELBO and leaves the fewest latents in use; one seed each does not rank the scores.
# %%
vae_lab.compare(runs, metrics=["mig", "dci", "elbo", "kl", "active_units"]).table
# %% [markdown]
# The latents of the last one, each from -3 to 3: rows at the top move, turn or grow the shape, often two of these at
# once; those at the bottom do nothing, because they are not used.
# %%
runs[-1].picture("traversals")
# %% [markdown]
# The same as numbers: how strongly the five latents that vary most follow each factor (absolute correlation). A
# disentangled model has one bright square in a row. Orientation and shape go round or have no order, so that their
# rows are dim.
# %%
batch = runs[0].data.to_pixels(runs[0].data.splits["val"][:])
codes = runs[-1].encode(batch.x)
most = codes.var(0).argsort(descending=True)[:5]
follows = torch.cat([batch.y.float(), codes[:, most]], 1).T.corrcoef()[:5, 5:].abs()
squares = follows.flatten()[:, None, None, None].expand(-1, 1, 24, 24)
names, latents = list(runs[0].data.factors), [f"z{i}" for i in most.tolist()]
Image.fromarray(pictures.annotate(pictures.grid(squares, 5), "factors and latents", names, latents))
