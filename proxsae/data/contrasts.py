"""Contrast pairs: sentences that are the same but for one concept, with the states of their marked words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxsae.data.files import PACKAGED


@dataclass(frozen=True, eq=False)
class Contrast:
    """The pairs of one concept; row i of `positive` and row i of `negative` are the two sides of pair i.

    A two-sided concept has a pole on either side (hot, cold); a one-sided control has a topic on the positive side and
    words of mixed other topics on the negative one.  `sentences` has the marked word, whose state the row is, in
    brackets; the sentences of a pair differ in exactly one word, which need not be the marked one.
    """

    name: str
    two_sided: bool
    positive: NDArray[np.float32]  # (n, 384)
    negative: NDArray[np.float32]  # (n, 384)
    words: NDArray[np.int64]  # (n,) the cluster of each pair: pairs with the same marked words
    held_out: NDArray[np.bool_]  # (n,) whole clusters: no marked word is on both sides
    sentences: tuple[tuple[str, str], ...]  # (positive, negative)


def contrasts() -> tuple[Contrast, ...]:
    """The packaged contrast pairs, float32: the two-sided concepts, then the one-sided controls.

    States are those of the packaged rows: after layer 3 of all-MiniLM-L6-v2, at the last subword token of the marked
    word.  PROVENANCE.md beside the files says how they were made.
    """
    text = Path(__file__).with_name("contrasts.tsv").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines()[1:]]  # concept, sides, word, part, positive, negative
    states = np.load(Path(__file__).with_name(f"{PACKAGED}-contrasts.npy"), allow_pickle=False).astype(np.float32)
    made = []
    for name in dict.fromkeys(line[0] for line in lines):
        rows = [i for i, line in enumerate(lines) if line[0] == name]
        _, sides, words, parts, positive, negative = zip(*(lines[i] for i in rows), strict=True)
        number = {word: i for i, word in enumerate(dict.fromkeys(words))}
        clusters = np.array([number[word] for word in words], dtype=np.int64)
        held_out, pairs = np.array([part == "held-out" for part in parts]), tuple(zip(positive, negative, strict=True))
        made.append(Contrast(name, sides[0] == "two", states[rows, 0], states[rows, 1], clusters, held_out, pairs))
    return tuple(made)
