"""WikiText-2 as a tensorflow-datasets builder: one example per article, in array_record files.

The files are not downloaded: you provide them, as train.txt, valid.txt and test.txt or
wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, in one folder. This is the tokenized
variant (<unk>, @-@), not the raw one.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from pangu_jax.core.errors import InputError
from pangu_jax.data import records

# Of the files that were checked against the published number of tokens. The train split
# was not available: it is taken unchanged.
SHA256 = {
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
SPLITS = ("train", "valid", "test")


class Wikitext2(tfds.core.GeneratorBasedBuilder):
    """WikiText-2, by article: {"title", "text"}."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "a folder with train.txt, valid.txt, test.txt, some or all"

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict({"title": text, "text": text}),
            homepage="https://arxiv.org/abs/1609.07843",
        )

    def _split_generators(self, dl_manager):
        files = find_files(dl_manager.manual_dir)
        return {split: self._generate_examples(file) for split, file in files.items()}

    def _generate_examples(self, path: Path):
        for number, (title, text) in enumerate(articles(path.read_text(encoding="utf-8"))):
            yield number, {"title": title, "text": text}


def prepare(source: str | Path, out: str | Path) -> Path:
    """Writes the dataset, unless it exists already.

    Args:
      source: the folder of the files.
      out: folder of datasets.

    Returns:
      The prepared folder, which `data.text.documents` reads.

    Raises:
      InputError: there is no file, one is not the published one, or nothing can be written.
    """
    find_files(source)
    config = tfds.download.DownloadConfig(manual_dir=str(Path(source).absolute()))
    return records.write(Wikitext2, out, download_config=config)


def find_files(folder: str | Path) -> dict[str, Path]:
    """The file of each existing split, with its checksum verified.

    Raises:
      InputError: there is none, or one is not the published one.
    """
    found = {}
    for split in SPLITS:
        for name in (f"{split}.txt", f"wiki.{split}.tokens"):
            if (Path(folder) / name).is_file():
                found.setdefault(split, Path(folder) / name)
    if not found:
        raise InputError(
            f"{folder} holds no file of WikiText-2: {Wikitext2.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    for split, file in found.items():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != SHA256.get(split, digest):
            raise InputError(
                f"{file} is not the {split} split of WikiText-2: its sha256 is {digest}, "
                f"not {SHA256[split]}"
            )
    return found


def articles(text: str) -> Iterator[tuple[str, str]]:
    """(title, text with its title line) of each article.

    An article begins with a line " = Title = " between two empty ones.
    """
    lines = text.split("\n")
    starts = [at for at in range(len(lines)) if _is_title(lines, at)]
    for first, last in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[first].strip(" ="), "\n".join(lines[first:last]).rstrip() + "\n"


def _is_title(lines: list[str], at: int) -> bool:
    empty = [0 <= i < len(lines) and not lines[i].strip() for i in (at - 1, at + 1)]
    return bool(re.fullmatch(r" = [^=].* = ", lines[at])) and (empty[0] or at == 0) and empty[1]
