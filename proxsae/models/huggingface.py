"""Models and texts from files, by transformers: a folder or a GGUF file, and text cut into rows of tokens.

Only the command line needs this file: `px.models` takes any module and any tokens.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from proxsae.conventions import Error, check_count, library
from proxsae.disk import sentence

AHEAD = 32  # batches of tokens that are cut before the first is given
FIELDS = ("text", "prompt", "content")  # of a line or a row: the first that is there
LABELS = ("label", "target")


def open_model(path: str) -> tuple[nn.Module, Any]:
    """A model in float32 and its tokenizer, from a folder of Hugging Face or a GGUF file; nothing is downloaded.

    Causal models come with their head, others without.  Raises `Error` where transformers is missing or refuses.
    """
    transformers = library("transformers", "lm")
    file = Path(path)
    more: dict[str, Any] = {"local_files_only": True}
    if file.suffix == ".gguf":
        library("gguf", "lm")
        path, more["gguf_file"] = str(file.parent), file.name
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:  # bars are for a terminal
            config = transformers.AutoConfig.from_pretrained(path, **more)
            causal = any(name.endswith(("CausalLM", "LMHeadModel")) for name in config.architectures or ["CausalLM"])
            kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **more)
            model = kind.from_pretrained(path, dtype="float32", **more)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        msg = f"transformers cannot read the model {file}: {sentence(problem)}"
        raise Error(msg) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    return model, tokenizer


def texts(paths: Iterable[str]) -> Iterator[str]:
    """Texts of files: each line of `.jsonl`, each row of `.csv` and `.csv.zst`, and any other file as a whole.

    Of a line or row the field text, prompt or content is taken, the first that is there.  Raises `Error` for a file
    that cannot be read and one without such a field.
    """
    for path in paths:
        for row in _rows(Path(path)):
            yield _field(row, Path(path), FIELDS)


def _rows(file: Path) -> Iterator[Any]:
    """The lines or rows of a file; of a file that has none, its whole text."""
    try:
        content = file.read_bytes()
        if file.suffix == ".zst":
            content = library("zstandard", "lm").ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
        lines = content.decode("utf-8-sig")
    except OSError as problem:
        msg = f"cannot read {file}: {problem.strerror or problem}"
        raise Error(msg) from None
    except UnicodeDecodeError:
        msg = f"{file} is not a text in UTF-8"
        raise Error(msg) from None
    kind = file.name.removesuffix(".zst").rpartition(".")[2]
    if kind == "jsonl":
        try:
            yield from (json.loads(line) for line in lines.splitlines() if line.strip())
        except json.JSONDecodeError as problem:
            msg = f"{file} has a line that is not JSON: {problem.msg}"
            raise Error(msg) from None
    elif kind == "csv":
        yield from csv.DictReader(io.StringIO(lines))
    else:
        yield {FIELDS[0]: lines}


def _field(row: Any, file: Path, wanted: tuple[str, ...], kinds: tuple[type, ...] = (str,)) -> str:
    if isinstance(row, dict):
        for name in wanted:
            if isinstance(row.get(name), kinds):
                return str(row[name])
    names = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
    msg = f"{file} has a row without a field {', '.join(wanted)}: its fields are {sentence(names)}"
    raise Error(msg)


class LabelledTexts(NamedTuple):
    """Batches with a row for each text; the place of each text among these rows; its label; how many are left out."""

    batches: list[dict[str, Any]]
    places: list[int]
    labels: list[str]
    left_out: int


def labelled_texts(path: str, tokenizer: Any, length: int, rows: int, skip: int) -> LabelledTexts:
    """The texts of a file, of each its last `length` tokens, and their labels: the field label or target.

    Texts of like length are run together.  Those without a token beyond the first `skip` are left out.  Raises `Error`
    as `texts` does, and where no text is left.
    """
    file = Path(path)
    found = [(_field(row, file, FIELDS), _field(row, file, LABELS, (str, int))) for row in _rows(file)]
    tokenizer.truncation_side = "left"  # the end of a text is what a probe reads
    ids = tokenizer([text for text, _ in found], truncation=True, max_length=length)["input_ids"] if found else []
    kept = [i for i, row in enumerate(ids) if len(row) > skip]
    if not kept:
        msg = f"{file} has no text of more than {skip} tokens: give longer texts"
        raise Error(msg)
    order = sorted(range(len(kept)), key=lambda i: len(ids[kept[i]]))
    batches = [
        dict(tokenizer.pad({"input_ids": [ids[kept[i]] for i in order[start : start + rows]]}, return_tensors="pt"))
        for start in range(0, len(order), rows)
    ]
    places = sorted(range(len(order)), key=lambda row: order[row])
    return LabelledTexts(batches, places, [found[i][1] for i in kept], len(ids) - len(kept))


def token_batches(
    found: Iterable[str], tokenizer: Any, length: int = 128, rows: int = 8, tokens: int | None = None
) -> Iterator[dict[str, Any]]:
    """Batches of `rows` rows of at most `length` tokens, as the tokenizer cuts and pads them, until `tokens` are given.

    A text begins a row, and what is longer goes on in the next one, with the tokenizer's own first token if it has one.
    Rows of like length come together: of short texts as they come half of a batch is padding.
    Raises `Error` where there is no text.
    """
    check_count("length", length, 2)
    given = 0
    waiting: list[list[int]] = []

    def sorted_batches() -> Iterator[dict[str, Any]]:
        waiting.sort(key=len)
        while waiting:
            padded = tokenizer.pad({"input_ids": waiting[:rows]}, return_tensors="pt")
            del waiting[:rows]
            yield {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    for text in found:
        if not text.strip():
            continue
        cut = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
        for row in cut if cut and isinstance(cut[0], list) else [cut]:
            if tokens is not None and given >= tokens:
                break
            given += len(row)
            waiting.append(row)
        if len(waiting) >= AHEAD * rows:
            yield from sorted_batches()
        if tokens is not None and given >= tokens:
            break
    if not given:
        msg = "there is no text: give files with at least one word"
        raise Error(msg)
    yield from sorted_batches()
