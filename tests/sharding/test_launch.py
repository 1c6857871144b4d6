"""Joining several processes: what is refused. `tests/system/test_processes.py` joins real ones."""

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.launch import batch_share, check_equal, connect, first_process
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset


def test_one_process_joins_nothing_and_reads_every_row():
    connect("")
    assert first_process()
    check_equal("text", "other text")
    assert batch_share(None, 8) == (0, 1)
    assert batch_share(Layout(make_mesh(data=8), preset("ddp")), 8) == (0, 1)
    with pytest.raises(InputError, match="a batch of 4 does not divide by the 8 parts"):
        batch_share(Layout(make_mesh(data=8), preset("ddp")), 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", 2, 0), "need --coordinator"),
        (("", None, 1), "need --coordinator"),
        (("localhost", 2, 0), "must be host:port or auto, got 'localhost'"),
        (("localhost:x", 2, 0), "must be host:port or auto"),
        (("localhost:1", None, 0), "needs --processes and --process"),
        (("localhost:1", 2, None), "needs --processes and --process"),
        (("localhost:1", 2, 2), "got 2 and 2"),
        (("localhost:1", 2, -1), "got 2 and -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        connect(*arguments)
