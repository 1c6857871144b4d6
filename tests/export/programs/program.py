"""A random program: its values, its steps, and what numpy says of them."""

import jax.numpy as jnp
import numpy as np

BOUND = 30.0


class Program:
    """A list of steps over a growing list of values, of which some are inputs."""

    def __init__(self, seed, kinds):
        """Draws steps of those kinds: functions of a program that add one where it fits."""
        self.rng = np.random.default_rng(seed)
        self.values, self.steps, self.peak = [], [], 1.0
        self.inputs = {}
        for name in ("a", "b", "i", "p"):
            shape = self.shape()
            kind = {"i": "int", "p": "bool"}.get(name, "float")
            self.inputs[name] = len(self.values)
            self.values.append(self.draw(shape, kind))
        self.wanted = int(self.rng.integers(3, 13))
        tries = 0
        while len(self.steps) < self.wanted and tries < 400:
            tries += 1
            kinds[int(self.rng.integers(len(kinds)))](self)
        self.results = sorted({len(self.values) - 1, int(self.rng.integers(4, len(self.values)))})

    def shape(self, low=0, high=5):
        rank = int(self.rng.integers(low, high + 1))
        return tuple(int(n) for n in self.rng.choice([1, 2, 3, 4], rank, p=[0.3, 0.3, 0.25, 0.15]))

    def draw(self, shape, kind="float"):
        if kind == "int":
            return self.rng.integers(-5, 6, shape).astype(np.int32)
        if kind == "bool":
            return self.rng.random(shape) < 0.5
        # Multiples of 1/64: float32 holds them, and different ones are far apart.
        return np.round(self.rng.normal(size=shape) * 128) / 64

    def pick(self, kind=None, low=0):
        kinds = {"float": "f", "int": "i", "bool": "b"}
        fitting = [
            n
            for n, v in enumerate(self.values)
            if v.ndim >= low and v.size and (kind is None or v.dtype.kind == kinds[kind])
        ]
        if not fitting:
            return None
        # Mostly the latest, so that programs are deep.
        return fitting[-1] if self.rng.random() < 0.6 else int(self.rng.choice(fitting))

    def chance(self, p=0.5):
        return bool(self.rng.random() < p)

    def add(self, function, result, *sources):
        """A step: `function` of the values numbered `sources`, which numpy says gives `result`."""
        result = np.asarray(result)
        if result.size > 600 or result.ndim > 5:
            return
        if result.dtype.kind == "f":
            result = result.astype(np.float64)
            top = np.abs(result).max(initial=0)
            if not np.isfinite(top) or top > BOUND * 100:
                return
            self.peak = max(self.peak, top)
        elif result.dtype.kind == "i":
            if np.abs(result.astype(np.int64)).max(initial=0) > 10**6:
                return
            result = result.astype(np.int32)
        self.steps.append((function, sources))
        self.values.append(result)
        if result.dtype.kind == "f" and np.abs(result).max(initial=0) > BOUND:
            self.steps.append((lambda x: jnp.tanh(x * 0.25), (len(self.values) - 1,)))
            self.values.append(np.tanh(result * 0.25))

    def arguments(self):
        kinds = {"f": np.float32, "i": np.int32, "b": np.bool_}
        return {
            name: self.values[n].astype(kinds[self.values[n].dtype.kind])
            for name, n in self.inputs.items()
        }

    def function(self, params, **inputs):
        values = [inputs[name] for name in self.inputs]
        for function, sources in self.steps:
            result = function(*(values[n] for n in sources))
            values.append(result)
        return {f"r{n}": values[n] for n in self.results}


def constant(array):
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
