"""The auxiliary load-balancing loss of routed layers."""

import jax


def load_balancing_loss(
    load: jax.Array, prob_sum: jax.Array, tokens: jax.Array, *, active: int
) -> jax.Array:
    """Sum over experts of f_i p_i: 1 if both are uniform, more if both are skewed alike.

    f_i = E / (K tokens) * load_i is the share of choices that fell on expert i, times E; p_i =
    prob_sum_i / tokens its mean probability under the global softmax. Gradients flow through p_i
    alone. Padding is left out where the statistics left it out.

    Args:
      load: float32 [..., G, E/G], pairs each expert got.
      prob_sum: float32 [..., G, E/G], summed probabilities.
      tokens: float32 [...], number of tokens.
      active: K, experts a token uses over all groups.

    Returns:
      float32 [...]; leading axes, such as layers, are kept.

    Source: arXiv 2505.21411, equation 8, without its factor alpha.
    """
    experts = load.shape[-1] * load.shape[-2]
    share = jax.lax.stop_gradient(load) * (experts / active)
    return (share * prob_sum).sum((-1, -2)) / tokens.clip(1) ** 2
