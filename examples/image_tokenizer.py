# %% [markdown]
# # A tokenizer of your own pictures
# Finite scalar quantization turns each picture of a folder into a grid of whole numbers, the tokens, as language models
# have them for text; a small network then learns which tokens follow which, and draws new ones.
# %%
import os

from PIL import Image

import vae_lab
from vae_lab.evaluation import pictures

QUICK = os.environ.get("QUICK", "").split()  # overrides for a quick look, as trainer.max_epochs=1
FOLDER = os.environ.get("PICTURES", "pictures")  # a folder of pictures, of any size and kind

settings = ["experiment=fsq_cifar", f"dataset.root={FOLDER}", "trainer.max_epochs=6", "logger=none"]
settings += ["model.channels=[32,64]", "model.num_blocks=1", "dataset.batch_size=64", "optimizer.lr=1e-3"]
run = vae_lab.train([*settings, *QUICK])
# %% [markdown]
# A picture of 32x32 pixels is 64 tokens, each one of 1,000: 80 bytes in place of 3,072.
# %%
images = run.data.to_pixels(run.data.splits["val"][:12]).x
q = run.vae.encode(images)
print(q.indices.shape, q.indices[0].flatten().tolist()[:16], f"{run.result['val/mse']:.4f}")
# %% [markdown]
# What is left of pictures that it never saw: above the pictures, below what their tokens say.
# %%
run.picture("reconstructions")
# %% [markdown]
# How evenly the tokens are used. What is never used is wasted.
# %%
run.picture("codebook")
# %% [markdown]
# Tokens drawn at random are noise. Those that the network draws, each given the ones before, begin to hang together
# after 300 steps: skies and grounds.
# %%
noise = run.sample(12, seed=0)
drawn = run.sample(12, seed=0, sampler="autoregressive", sampler_steps=int(os.environ.get("STEPS", "300")))
columns = [pictures.annotate(pictures.grid(those, 4), title) for those, title in ((noise, "random"), (drawn, "drawn"))]
Image.fromarray(pictures.beside(columns))
