"""Runs `pangu-jax train`; its options are in `cli/options/train.py`."""

import contextlib
import dataclasses
import sys
from pathlib import Path

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.options.train import Options
from pangu_jax.cli.progress import working
from pangu_jax.cli.stopping import PLACEMENT, joined, stoppable
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.spec import count
from pangu_jax.data.packing import PackedTokens, Tokens, fingerprint, tokenize
from pangu_jax.data.pipeline import batches, check_batches
from pangu_jax.data.text import documents, split_documents
from pangu_jax.data.tokenizer import ByteTokenizer, Tokenizer, check_vocabulary, load_tokenizer
from pangu_jax.data.tokenizer_save import tokenizer_files
from pangu_jax.eval.perplexity import measure
from pangu_jax.models import decoder, presets
from pangu_jax.nn.how import How
from pangu_jax.sharding.launch import (
    batch_share,
    check_equal,
    first_process,
    layout_of,
)
from pangu_jax.sharding.layout import Layout, whole
from pangu_jax.train.language import language_loss
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer, schedule
from pangu_jax.train.profile import Profiler

# What may differ when a run is resumed: it changes no result, but for rounding.
FREE = ("out", *PLACEMENT, "checkpoint_every", "profile")


def main(options: Options) -> None:
    """Trains, evaluates on held-out text, and prints the run's folder."""
    with joined(options.coordinator, options.processes, options.process) as claims:
        _main(options, claims)


def _main(options: Options, claims: contextlib.ExitStack) -> None:
    loop = LoopConfig(
        options.steps,
        options.accumulate,
        options.seed,
        options.checkpoint_every,
        evaluate_every=options.evaluate_every,
    )
    layout = layout_of(options.mesh, options.rules)
    how = How(layout, remat=options.remat, dtype=options.dtype)
    tokenizer = load_tokenizer(options.tokenizer)
    params, cfg = _model(options, tokenizer, layout)
    training, testing = _tokens(options, tokenizer)
    for tokens in (training, testing) if testing else (training,):
        check_vocabulary(tokens.ids, tokenizer, cfg.vocab)
    folder = Path(options.out)
    source = PackedTokens(training, options.length)
    # Before the folder is claimed, so that an impossible run leaves none behind.
    check_batches(len(source), options.batch, options.seed)
    if options.batch % options.accumulate:
        raise InputError(
            f"accumulate {options.accumulate} must divide the batch of {options.batch}"
        )
    share, shares = batch_share(layout, options.batch)
    text = fingerprint(training)
    check_equal(text, "other text, or another tokenizer,")
    place: Path | Claim = folder
    if first_process():
        wanted = {**to_json(options), "out": "", "text": text}
        place = claims.enter_context(store.begin(cfg, folder, wanted, free=FREE))
        _keep_tokenizer(tokenizer, folder)
        _announce(options, cfg, training, layout)

    def evaluate(params):
        result = measure(
            params,
            testing,
            cfg=cfg,
            length=options.length,
            batch=options.batch,
            max_tokens=options.evaluate_tokens,
            how=how,
        )
        return {"bits_per_byte": result.bits_per_byte, "perplexity": result.perplexity}

    with stoppable():
        state = train(
            language_loss(
                cfg, aux_weight=options.aux_weight, documents=source.most_documents, how=how
            ),
            decoder.spec(cfg),
            lambda step: batches(
                source,
                batch=options.batch,
                seed=options.seed,
                start_step=step,
                process_index=share,
                process_count=shares,
            ),
            cfg=loop,
            optimizer=make_optimizer(options.optimizer, options.steps),
            schedule=schedule(options.optimizer, options.steps),
            folder=place,
            params=params,
            evaluate=evaluate if testing else None,
            layout=layout,
            profile=Profiler(folder / "profile", tell=_say) if options.profile else None,
        )
    if testing:
        scores = evaluate(state.params)
        if first_process():
            print(f"held-out bits per byte {scores['bits_per_byte']:.4f}")
    if first_process():
        print(f"{folder} holds the run; try: pangu-jax generate {folder}")


def _say(line: str) -> None:
    if first_process():
        print(line, file=sys.stderr)


def _model(options: Options, tokenizer: Tokenizer, layout: Layout | None):
    if options.init is not None:
        with working(f"reading {options.init}"):
            params, cfg, _ = open_checkpoint(
                options.init,
                kind="decoder",
                by="`pangu-jax train`",
                dtype="float32",
                layout=layout,
            )
        return params, cfg
    cfg = presets.preset(options.preset)
    if not isinstance(tokenizer, ByteTokenizer) and cfg.vocab == presets.BYTE_VOCAB:
        cfg = dataclasses.replace(cfg, vocab=-(-tokenizer.vocab_size // 8) * 8)
    return None, cfg


def _tokens(options: Options, tokenizer: Tokenizer) -> tuple[Tokens, Tokens | None]:
    found = documents(options.data, field=options.field)
    kept, tested = split_documents(found, options.held_out)
    if not kept:
        raise InputError(f"all documents of {options.data} fall to the held-out part; lower it")
    with working("reading the text"):
        return tokenize(kept, tokenizer), tokenize(tested, tokenizer) if tested else None


def _keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    for name, content in tokenizer_files(tokenizer).items():
        with atomic_write(folder / name, "wb") as file:
            file.write(content)


def _announce(
    options: Options, cfg: decoder.DecoderConfig, tokens: Tokens, layout: Layout | None
) -> None:
    spec = decoder.spec(cfg)
    print(
        f"{count(spec):,} parameters, {decoder.count_active(cfg):,} active per token; "
        f"{len(tokens.ids):,} training tokens of {tokens.bytes:,} bytes",
        file=sys.stderr,
    )
    for line in [] if layout is None else whole(spec, layout):
        print(line, file=sys.stderr)
