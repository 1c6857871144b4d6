"""One process of reinforcement learning over several: what test_rl_processes.py starts."""

import json
import sys

import jax
import numpy as np
import optax

from pangu_jax.core.tree import content_hash
from pangu_jax.losses.policy import GRPO
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning import rl
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.sharding.launch import connect, first_process, gathered
from pangu_jax.sharding.layout import Layout, init
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset
from pangu_jax.train.stop_signal import Stopped

MODEL = decoder.DecoderConfig(13, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(24)),))
CFG = rl.RlConfig(
    ScheduleConfig(1, batch=2, group=4, slots=8),
    policy=GRPO,
    updates=6,
    length=16,
    max_new_tokens=6,
    save_every=2,
    stop_ids=(3,),
)


def reward(question, found):
    """Only process 0 may be asked."""
    assert first_process()
    return [float(np.mean(answer.ids == 7)) for answer in found]


def run(folder, how, on_update=None):
    """The state at the end."""
    return rl.train(
        init(decoder.spec(MODEL), key=jax.random.key(0), layout=how.layout),
        lambda group: [1, 2 + group % 3],
        reward,
        model=MODEL,
        cfg=CFG,
        optimizer=optax.adam(2e-2),
        folder=folder,
        on_update=on_update,
        how=how,
    )


def main(folder, coordinator, process):
    """Runs, and prints a hash of the parameters; 143 where a signal stopped it."""
    connect(coordinator, 2, int(process))
    layout = Layout(make_mesh(data=2, fsdp=2), preset("fsdp"))
    try:
        state = run(folder, How(layout))
    except Stopped as stop:
        sys.exit(stop.status)
    print(json.dumps(content_hash(gathered(state.params))))


if __name__ == "__main__":
    main(*sys.argv[1:])
