"""The command `cit pool tokenize`, and what it prints."""

from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_curate.storage.lock import writer_lock
from cit_curate.terminal import count_and_rate, printable, progress_bar


def tokenize(
    pool: tyro.conf.Positional[Path],
    *,
    text_encoder: str = TextTowerConfig.text_encoder,
    max_text_length: int = TextTowerConfig.max_text_length,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Tokenise every caption of a pool once; curation then reads the token ids beside the captions.

    The token ids serve every text encoder with the same tokenizer and length limit, also one that
    is being trained. No selection changes. Augmented tags are tokenised at each visit. A pool that
    was built again must be tokenised again.

        cit pool tokenize POOL
        cit pool tokenize POOL --text-encoder package:minilm

    Args:
        pool: The pool's folder.
        text_encoder: Text encoder whose tokenizer is used; as for curation.
        max_text_length: Captions are cut to this many tokens; as for curation.
        overwrite: Replace existing tokens.
        json: Print one JSON document.
    """
    from cit_curate.pool.pool import Pool
    from cit_curate.pool.token_files import tokens_folder, write_token_files
    from cit_curate.text_encoder.load import load_tokenizer
    from cit_curate.text_encoder.tokenizer import encode, tokenizer_key

    TextTowerConfig(text_encoder=text_encoder, max_text_length=max_text_length)  # checks them
    opened = Pool.open(pool)
    if opened.is_remote:
        raise ConfigError(f"{opened.location} is in a store; tokens are for a pool on a disk")
    tokenizer = load_tokenizer(text_encoder)
    key = tokenizer_key(tokenizer, max_text_length)
    pool_folder = opened.path.absolute()
    folder = tokens_folder(pool_folder, key)
    if not overwrite and opened.token_files(key) is not None:
        raise ConfigError(f"{folder} is there already; write it again with --overwrite")
    with writer_lock(pool_folder), progress_bar() as progress:
        bar = progress.add_task("tokenising", total=opened.num_pairs, numbers="")

        def report(done: int) -> None:
            seconds = progress.tasks[bar].elapsed
            numbers = count_and_rate(done, opened.num_pairs, seconds, "captions")
            progress.update(bar, completed=done, numbers=numbers)

        written = write_token_files(
            pool_folder,
            opened.manifest,
            key,
            partial(encode, tokenizer, cut_to=max_text_length),
            progress=report,
        )
    num_bytes = sum(file.bytes for file in written.files)
    if json:
        print_json({"path": str(folder), "num_captions": opened.num_pairs, "bytes": num_bytes})
        return
    line = f"{folder}: tokens of {opened.num_pairs:,} captions, {num_bytes / 1e6:,.1f} MB"
    Console(highlight=False, soft_wrap=True).print(Text(printable(line)))
