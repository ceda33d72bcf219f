"""What training minimises: one file for each family of papers, one class for each objective.

An objective is an `nn.Module`, called with (vae, batch, context):

    vae      a `vae_lab.models.vae.VAE`
    batch    x, images (B, C, H, W) in [0, 1], and y, int64 labels (B, F) or None
    context  the `Context` below

The KL is a posterior's own, `q.kl(prior)` in nats; `elbo.kl_per_latent` takes its mean over the batch, or estimates it
from samples where there is no closed form.

It returns a flat dict of 0-dim tensors, means over the images of the batch, whose keys are names of metrics (see
`vae_lab.metrics.catalogue`). `loss` is what is minimised; the others are logged beside it.

What an objective needs of the model it declares, and a model that lacks it is refused before anything starts:
`needs = ("prior",)`, of

    encoder, prior   the model has one
    density          log q(z given x) is known at the samples of z, which differ: not of codes from a book
    diagonal         q is a diagonal Gaussian, with `log_var`
    point            q is a point, as that of a plain autoencoder

A posterior without a density has no KL, and its model no prior; but where the objective makes all codes together follow
the prior, by another distance, it says `matches_prior = True`, and the model has it.

Where the loss does not depend on the step from some step on, and nothing is drawn on the CPU, it may name that step as
`varies_until`: from there on a training step can be a CUDA graph.

It may own an `adversary`, a network with an optimizer of its own that takes a step after each one of the model. The
config describes it as `objective.adversary`, without its input and output, which follow from the class: its input are
`judges = "images"` or `"codes"`, its output is one number. `adversary_loss(vae, batch, context)` returns such a dict
too, in which `discriminator_loss` is what the adversary minimises. In a game of two a lower `loss` is not a better
model: the last checkpoint is the best one, unless another metric is monitored.
"""

from typing import Literal, NamedTuple

Stage = Literal["train", "val", "test"]


class Context(NamedTuple):
    """What an objective may know besides the model and the batch.

    Attributes:
        step: optimizer steps of the model taken so far.
        num_images: of the training split, for estimates that need the size of the data set.
        stage: what the result is for. Schedules are for training: evaluation asks for the final weights, because a
            loss with a small weight would look better than a later, better one.
    """

    step: int
    num_images: int
    stage: Stage
