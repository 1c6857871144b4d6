"""A written chain of thought, and the answer without one: the baselines of latent methods."""

from pangu_jax.reasoning.latent.curriculum import no_chain, whole_chain
from pangu_jax.reasoning.latent.method import Method, written

COT = Method(whole_chain, written)
NO_COT = Method(no_chain, written)
