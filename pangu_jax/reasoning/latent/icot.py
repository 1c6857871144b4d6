"""Stepwise internalization: the chain's tokens are removed, from the first one on.

Source: arXiv 2405.14838.
"""

from pangu_jax.reasoning.latent.curriculum import token_by_token
from pangu_jax.reasoning.latent.method import Method, written

METHOD = Method(token_by_token, written)
