"""Runs `pangu-jax distill`; its options are in `cli/options/distill.py`."""

import sys
from pathlib import Path
from typing import Any

from pangu_jax.checkpoint import hf, store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.options.distill import Options
from pangu_jax.cli.progress import working
from pangu_jax.cli.stopping import stoppable
from pangu_jax.core.config import to_json
from pangu_jax.data.packing import PackedTokens, fingerprint, tokenize
from pangu_jax.data.pipeline import batches
from pangu_jax.data.text import documents
from pangu_jax.data.tokenizer import check_vocabulary, load_tokenizer
from pangu_jax.data.tokenizer_save import companions
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.how import How
from pangu_jax.pruning import export
from pangu_jax.pruning import plan as plans
from pangu_jax.train.distill import distill_loss
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer, schedule

# What may differ when a run is resumed: it changes no result.
FREE = ("out", "checkpoint_every")


def main(options: Options) -> None:
    """Distills, from the last checkpoint in OUT if there is one, and writes OUT/model."""
    with working("reading checkpoints"):
        taken = {"kind": "decoder", "by": "`pangu-jax distill`"}
        teacher, teacher_cfg, where = open_checkpoint(options.teacher, **taken)
        student, cfg, _ = open_checkpoint(options.student, **taken, dtype="float32")
    tokenizer = load_tokenizer(options.tokenizer or where)
    with working("reading the text"):
        tokens = tokenize(documents(options.data, field=options.field), tokenizer)
    check_vocabulary(tokens.ids, tokenizer, cfg.vocab)
    folder = Path(options.out)
    loss = distill_loss(
        teacher_cfg,
        cfg,
        kl_weight=options.kl_weight,
        lm_weight=options.lm_weight,
        hidden_weight=options.hidden_weight,
        hidden=_kept(options, cfg, teacher_cfg),
        temperature=options.temperature,
        how=How(remat=options.remat, dtype=options.dtype),
    )
    source = PackedTokens(tokens, options.length)
    wanted = {**to_json(options), "out": "", "text": fingerprint(tokens)}
    with store.begin(cfg, folder, wanted, free=FREE) as claim:
        with stoppable():
            state = train(
                loss,
                decoder.spec(cfg),
                lambda step: batches(
                    source, batch=options.batch, seed=options.seed, start_step=step
                ),
                cfg=LoopConfig(
                    options.steps, seed=options.seed, checkpoint_every=options.checkpoint_every
                ),
                optimizer=make_optimizer(options.optimizer, options.steps),
                schedule=schedule(options.optimizer, options.steps),
                folder=claim,
                params=student,
                label="distill",
                frozen=teacher,
            )
        if (folder / "model").exists():
            print(f"{folder / 'model'} is there already", file=sys.stderr)
            return
        write_model(state.params, cfg, folder / "model", options.student, options.tokenizer)
    print(f"{folder / 'model'} holds the student; try: pangu-jax eval {folder / 'model'}")


def _kept(options: Options, cfg, teacher_cfg) -> tuple[int, ...] | None:
    path = Path(options.student) / "plan.json"
    if not options.hidden_weight or cfg.width == teacher_cfg.width or not path.is_file():
        return None
    return plans.load(path).hidden


def write_model(
    params: Any, cfg: decoder.DecoderConfig, folder: Path, like: str, tokenizer: str | None
) -> None:
    """Writes a decoder in the layout of the checkpoint that its training began with.

    Args:
      params: tree of `decoder.spec(cfg)`.
      cfg: the model.
      folder: a new folder.
      like: that checkpoint; in place of a run folder's layout, Llama's is written.
      tokenizer: "bytes", a tokenizer.json or a folder with one; None takes the checkpoint's.

    Raises:
      InputError: it cannot be written, or that layout cannot hold it.
    """
    hugging = (Path(like) / "config.json").is_file()
    own = (Path(like) / "model.json").is_file()
    kind = "uniform" if len(transformer.run_lengths(cfg)) == 1 else "per-layer"
    family = hf.read_config(like)[1] if hugging and not own else "llama"
    export.export(
        params,
        cfg,
        folder,
        kind=kind,
        family=family,
        source=like if hugging and not own else None,
        companions=companions(tokenizer or like, like),
    )
