"""What a model is made of: networks, posteriors, priors, likelihoods, and the VAE that binds them. Torch only.

Every part is one class and one YAML file; parts share no base class, but these names. Shapes: S samples of z, B batch,
C channels, H height, W width; `latent_shape` is (D,), or (D, h, w) where an encoder keeps a grid.

A **network** is built from (`image_shape`, `out_features`) as an encoder, from (`latent_dim`, `image_shape`) as a
decoder. One that is called with the labels too says so with `takes_labels = True`. An encoder that keeps a grid says so
with `grid = (h, w)`: it puts out (B, out_features, h, w), and the decoder of its model takes (B, latent_dim, h, w).

A **posterior** is called with the encoder's output and returns q(z given x). It says how much the encoder must put out,
`params_per_latent` (with 0 there is none), and whether q has a density, `has_density`; the model of one that has none
has no prior, unless the objective makes the codes follow it. Where q is a diagonal Gaussian, a dataclass with `mean` and
`log_var`, whose `log_prob` is known at every z, it says `diagonal = True`. Of q:

    mean            (B, *latent_shape), the code
    rsample(S)      z, (S, B, *latent_shape), differentiable
    log_prob(z)     (S, B), nats
    kl(prior)       (B, *latent_shape), nats, where there is a closed form, else None
    terms           further terms of the loss by name, 0-dim, nats per image
    diagnostics()   what is logged beside the loss, by name, 0-dim

A **prior** is built from `latent_shape`: `log_prob(z)` (S, B), `sample(n, generator)` (n, *latent_shape), on the CPU
or, where it is learned, on its own device. One that needs the encoder has `bind(vae)`, which the model calls once, when
it is built; it must not keep the model's networks as modules of its own.

A **likelihood** has `params_per_channel` = P, `log_prob(x, params)`: (B, C, H, W) and (S, B, P*C, H, W) -> (S, B),
`mean(params)`, `sample(params)`, and `check(x)`, which refuses images that it is no likelihood of.
"""
