"""Questions with their solutions, packed into rows in which the solutions alone are learned."""

from collections.abc import Sequence

import numpy as np

from pangu_jax.core.errors import InputError

NAMES = ("tokens", "labels", "segments", "positions")


class Solutions:
    """The Source of training rows of `length` tokens, for `train.language`.

    Each example is a segment of its own, and is whole. Labels without weight are 0.

    Attributes:
      most: the most examples in a row, and its padding.
      left_out: examples that are longer than a row.
    """

    def __init__(
        self, examples: Sequence[tuple[Sequence[int], Sequence[int]]], length: int, *, seed: int = 0
    ):
        """Packs.

        Args:
          examples: ids of a prompt, at least one, and of what is to be said.
          length: tokens of a row.
          seed: of the order in which rows are filled up.

        Raises:
          InputError: none fits.
        """
        self._length = length
        self._rows: list[list[tuple[list[int], int]]] = []
        self.left_out, room = 0, 0
        for place in np.random.default_rng(seed).permutation(len(examples)):
            prompt, said = (list(ids) for ids in examples[place])
            size = len(prompt) + len(said) - 1
            if size > length:
                self.left_out += 1
                continue
            if size > room:
                self._rows.append([])
                room = length
            self._rows[-1].append((prompt + said, len(prompt)))
            room -= size
        if not self._rows:
            raise InputError(f"none of {len(examples)} solutions fits into {length} tokens")
        self.most = 1 + max(map(len, self._rows))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`: tokens, labels, segments, positions int32, weights float32, of `length`."""
        row = {name: np.zeros(self._length, np.int32) for name in NAMES}
        weights, begins = np.zeros(self._length, np.float32), 0
        for number, (ids, known) in enumerate(self._rows[index], 1):
            ends, said = begins + len(ids) - 1, begins + known - 1
            row["tokens"][begins:ends] = ids[:-1]
            row["labels"][said:ends] = ids[known:]
            row["segments"][begins:ends] = number
            row["positions"][begins:ends] = np.arange(ends - begins)
            weights[said:ends] = 1
            begins = ends
        return {**row, "weights": weights}
