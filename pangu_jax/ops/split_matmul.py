"""Products of bfloat16 rows with a float32 kernel, as exact as float32 ones, on tensor cores.

A float32 number is the sum of three bfloat16 numbers, each half of what is left of the one before.
Products of bfloat16 numbers are exact in float32, so the product with the three parts, side by side
in one bfloat16 matrix, adds up to the product in float32.
"""

import jax
import jax.numpy as jnp

PARTS = 3  # of 8 bits each: a float32 number has 24


def split_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in float32.

    Args:
      x: bfloat16 [T, D].
      kernel: float32 [D, E]; finite, no number above 3.3e38.

    Returns:
      float32 [T, E]. The kernel's gradient is as exact; that of `x`, which is bfloat16, comes from
      products of two parts each.
    """
    return _product(x, kernel)


@jax.custom_vjp
def _product(x, kernel):
    parts = jnp.concatenate(_split(kernel, PARTS), axis=1)
    return sum(jnp.split(_matmul(x, parts), PARTS, axis=1))


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    dkernel = sum(jnp.split(_matmul(x.T, jnp.concatenate(_split(dy, PARTS), 1)), PARTS, 1))
    (high, low), (first, second) = _split(dy, 2), _split(kernel, 2)
    left = jnp.concatenate([high, low, high], axis=1)
    right = jnp.concatenate([first, first, second], axis=1)
    return _matmul(left, right.T).astype(x.dtype), dkernel


_product.defvjp(_forward, _backward)


def _split(x, count):
    """Splits x into this many bfloat16 arrays that sum to it, up to the bits beyond 8 of each."""
    parts = []
    for _ in range(count):
        # Not astype: the compiler may take a pair of conversions away.
        part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts


def _matmul(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
