"""Runs `pangu-jax serve`; its options are in `cli/options/serve.py`."""

import os
import sys
from pathlib import Path

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.generate_file import note_length, note_thoughts
from pangu_jax.cli.options.serve import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra
from pangu_jax.data.chat import Template, stop_ids
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How

KEY = "PANGU_JAX_API_KEY"
LONGEST = 4096  # tokens that a slot has room for, unless --length says


def main(options: Options) -> None:
    """Serves until it is asked to stop; prints where."""
    check_extra("serve", "pydantic", "starlette", "uvicorn", by="serving")
    from pangu_jax.serve.app import Served, build
    from pangu_jax.serve.driver import Driver
    from pangu_jax.serve.server import Server, bound

    key, name = _key(), options.name or Path(options.checkpoint).resolve().name
    if not 0 <= options.drain < 1e6:
        raise InputError(f"--drain must be 0 or more seconds, got {options.drain}")
    with bound(options.host, options.port) as listener:  # before what takes long
        with working(f"reading {options.checkpoint}"):
            params, cfg, found = open_checkpoint(
                options.checkpoint, kind="decoder", by="`pangu-jax serve`", dtype=options.dtype
            )
            params = by_layer(params, donate=True)
        note_thoughts(options.checkpoint)
        tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.checkpoint)
        template = _template(options, tokenizer)
        length = min(cfg.max_length, LONGEST) if options.length is None else options.length
        driver = Driver(
            params,
            cfg=cfg,
            slots=options.slots,
            length=length,
            queue=options.queue,
            burst=options.burst,
            warm=options.warm,
            stops=max(8, _stops(tokenizer, template)),
            how=How(dtype=options.dtype),
        )
        note_length(length, cfg)
        with working("compiling"):
            driver.start()
        app = build(Served(driver, tokenizer, template, name, key))
        place = _place(options.host, listener.getsockname()[1])
        said = f"serving {name} on http://{place}/v1"
        ready = lambda: print(said, flush=True)  # noqa: E731
        server = Server(app, drain=options.drain, end=driver.end, ready=ready)
        driver.failed = server.stop
        if not driver.alive:  # it failed in between
            server.stop()
        _warn(options.host, key)
        server.run(sockets=[listener])
        driver.end("the server has ended")
        driver.join(timeout=10)
    if driver.failure is not None:
        raise driver.failure


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise InputError(f"{KEY} must be printable ASCII without spaces around it, and not empty")
    return key


def _template(options: Options, tokenizer: Tokenizer) -> Template | str:
    """The template, or why there is none, which chats are told: a base model only completes."""
    try:
        return choose_template(options.template, options.checkpoint, tokenizer)
    except InputError as error:
        if options.template != "auto":
            raise
        print(f"note: no chat, only completions: {error}", file=sys.stderr)
        return str(error)


def _stops(tokenizer: Tokenizer, template: Template | str) -> int:
    return len(tokenizer.eos_ids if isinstance(template, str) else stop_ids(tokenizer, template))


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _warn(host: str, key: str | None) -> None:
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(
            f"warning: everybody who can reach {host} can use this model; {KEY} asks for a key",
            file=sys.stderr,
        )
