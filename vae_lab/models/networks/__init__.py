"""Encoders and decoders: tensors in, tensors out; nothing here knows what a posterior or a likelihood is.

Every encoder is built from (image_shape, out_features) and every decoder from (latent_dim, image_shape), where the
channels of a decoder's `image_shape` are those of its raw output.

Shapes: B batch, C channels, H height, W width, D latent_dim.
"""
