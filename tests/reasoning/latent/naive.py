"""A Llama-like decoder in plain jax.numpy: one row, no cache, all computed again each time."""

import jax
import jax.numpy as jnp


def norm(scale, x, eps):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * scale


def turn(x, theta, places):
    """[T, K, Q, C] rotated by places, or by 0, 1, ..."""
    half, places = x.shape[-1] // 2, range(len(x)) if places is None else places
    angle = jnp.asarray(places)[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def layer(p, x, heads, cfg, places=None):
    seen = jnp.tril(jnp.ones((len(x), len(x)), bool))
    if heads.window:
        at = jnp.arange(len(x)) if places is None else jnp.asarray(places)
        seen &= at[:, None] - at < heads.window
    y = norm(p["attention_norm"]["scale"], x, cfg.norm_eps)
    q = jnp.einsum("td,dkqc->tkqc", y, p["attention"]["query"]["kernel"])
    q = turn(q, cfg.rope.theta, places)
    k = jnp.einsum("td,dkc->tkc", y, p["attention"]["key"]["kernel"])
    k = turn(k[:, :, None], cfg.rope.theta, places)[:, :, 0]
    v = jnp.einsum("td,dkc->tkc", y, p["attention"]["value"]["kernel"])
    score = jnp.einsum("tkqc,skc->kqts", q, k) / heads.head_dim**0.5
    share = jax.nn.softmax(jnp.where(seen, score, -jnp.inf), -1)
    mixed = jnp.einsum("kqts,skc->tkqc", share, v)
    x = x + jnp.einsum("tkqc,kqcd->td", mixed, p["attention"]["out"]["kernel"])
    y = norm(p["mlp_norm"]["scale"], x, cfg.norm_eps)
    up, gate = y @ p["mlp"]["up"]["kernel"], y @ p["mlp"]["gate"]["kernel"]
    return x + (up * gate * jax.nn.sigmoid(gate)) @ p["mlp"]["down"]["kernel"]


def states(params, x, cfg, places=None):
    """[T, D] embeddings to [T, D], after the final norm."""
    number = 0
    for run in params["runs"]:
        for i in range(len(jax.tree.leaves(run)[0])):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], run)
            x = layer(one, x, cfg.layers[number].attention, cfg, places)
            number += 1
    return norm(params["norm"]["scale"], x, cfg.norm_eps)


def inputs(params, prefix, thoughts, tail, cfg, step=lambda params, state: state):
    """The embeddings of a row: each thought takes a pass over all that is before it."""
    table = params["embed"]["table"]
    x = table[jnp.asarray(prefix)]
    for _ in range(thoughts):
        x = jnp.concatenate([x, step(params, states(params, x, cfg)[-1])[None]])
    return jnp.concatenate([x, table[jnp.asarray(tail, int)]]) if len(tail) else x


def row_loss(params, row, thoughts, cfg, gap=0, **more):
    """Summed nats of what is to be predicted in a row of `Slots`, its tail `gap` places on."""
    x = inputs(params, row.prefix, thoughts, row.tail, cfg, **more)
    first = len(row.prefix) + thoughts
    places = [n if n < first else n + gap for n in range(len(x))]
    scores = jax.nn.log_softmax(states(params, x, cfg, places) @ params["head"]["kernel"])
    return -sum(scores[first + i - 1, row.tail[i]] for i in range(row.given, len(row.tail)))


def best(params, row, thoughts, written, cfg, gap=0):
    """The likeliest id at the place of each written one, which are `gap` places on, given those
    before it.
    """
    tail = [*row.tail[: row.given], *written]
    x = inputs(params, row.prefix, thoughts, tail, cfg)
    first = len(x) - len(written)
    places = [n if n < first else n + gap for n in range(len(x))]
    scores = states(params, x, cfg, places) @ params["head"]["kernel"]
    return jnp.argmax(scores, -1)[len(x) - len(written) - 1 : -1]
