"""What a model is made of: networks, posteriors, priors, likelihoods, and the VAE that binds them. Torch only.

Every part is one class and one YAML file; parts share no base class, but these names. Shapes: S samples of z, B batch,
C channels, H height, W width; `latent_shape` is (D,), or (D, h, w) where an encoder keeps a grid.

A **network** is built from (`image_shape`, `out_features`) as an encoder, from (`latent_dim`, `image_shape`) as a
decoder. One that is called with the labels (B, F) too says so with `takes_labels = True`, and with `num_classes` of
each column; `model.conditional=true` makes one of any. Networks that keep a grid say so with `grid = (h, w)`: the
encoder puts out (B, out_features, h, w), the decoder takes (B, latent_dim, h, w).

A **posterior** is called with the encoder's output and returns q(z given x). It says how much the encoder must put out,
`params_per_latent`, and where it needs more numbers besides, `params_per_image`; of a posterior that needs none there
is no encoder. It says whether q has a density, `has_density`; the model of one that has none has no prior, unless the
objective makes the codes follow it. One that can be asked for a grid of latents says `takes_grid = True`; one whose q
is a diagonal Gaussian, a dataclass with `mean` and `log_var` and a `log_prob` of every z, `diagonal = True`. Of q:

    mean            (B, *latent_shape), the code: one z that stands for x
    rsample(S)      z, (S, B, *latent_shape), differentiable
    log_prob(z)     (S, B), nats
    kl(prior)       (B, ...), nats, where there is a closed form, else None: for each latent, or for each group of
                    latents that does not part; their sum is the KL
    terms           further terms of the loss by name, 0-dim, nats per image
    diagnostics()   what is logged beside the loss, by name, 0-dim

A posterior whose latents are not just any numbers (codes, points on a sphere) also has `prior(latent_shape)`, the prior
in place of `prior=standard_normal`, every other is refused; and `project(z)`, the nearest latent that it can have, with
which pictures walk through latents. One with K codes says `num_codes = K`, and its q has their `indices`, int64
(B, n, *grid). One that changes with the training has an attribute `step`, which the training sets at each batch, and
`varies_until`, the step from which on it changes no more; in evaluation mode it is what it will be at the end.

A **prior** is built from `latent_shape`: `log_prob(z)` (S, B), `sample(n, generator)` (n, *latent_shape), on the CPU
or, where it is learned, on its own device. One that needs the encoder has `bind(vae)`, which the model calls once, when
it is built; it must not keep the model's networks as modules of its own. One of two layers has `top_dim` and
`sample_below(top, generator)`, too, and there is a picture of them.

A **likelihood** has `params_per_channel` = P, `log_prob(x, params)`: (B, C, H, W) and (..., B, P*C, H, W) -> (..., B)
with or without S, `mean(params)`, `sample(params)`, and `check(x)`, which refuses images that it is no likelihood of.
"""
