"""Text-to-video in JAX: a video autoencoder, a sharded diffusion transformer, and all that feeds them."""

__version__ = "0.1.0"
