"""What a model is made of: networks, posteriors, priors, likelihoods, and the VAE that binds them. Torch only."""
