"""The packaged contrast pairs are what PROVENANCE.md says: one word of difference, and no held-out word in training."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import proxsae as px

FOLDER = Path(px.data.__file__).parent
TEXT, STATES = FOLDER / "contrasts.tsv", FOLDER / "minilm-l6-v2-layer3-contrasts.npy"
PAGE = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
CONTRASTS = px.data.contrasts()
TWO_SIDED = [
    "gender", "number", "tense", "sentiment", "negation", "size", "age", "temperature", "direction", "certainty",
]  # fmt: skip
CONTROLS = ["music", "food", "animals", "cities"]
IN_CONTEXT = {"tense", "negation", "certainty"}  # the marked word is the same on both sides

each = pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda contrast: contrast.name)


def marked(sentence):
    """The marked word; a sentence has one, in brackets, and is otherwise words and one stop at the end."""
    found = re.fullmatch(r"(?!.*\].*\])(?:[\w']+ )*\[([A-Za-z]+)\](?: [\w']+)*[.?]", sentence)
    assert found, sentence
    return found[1]


def auc(positive, negative):
    """The share of (positive, negative) that are in order."""
    return (positive[:, None] > negative).mean()


def test_the_concepts_are_these():
    assert [c.name for c in CONTRASTS if c.two_sided] == TWO_SIDED
    assert [c.name for c in CONTRASTS if not c.two_sided] == CONTROLS


@each
def test_shapes_types_and_counts(contrast):
    n = len(contrast.sentences)
    assert n == 200
    for side in (contrast.positive, contrast.negative):
        assert (side.shape, side.dtype) == ((n, 384), np.float32)
        assert np.isfinite(side).all()
        assert 9 < np.linalg.norm(side, axis=1).min() < np.linalg.norm(side, axis=1).max() < 16
        assert len(np.unique(side, axis=0)) == n
    assert (contrast.words.shape, contrast.words.dtype) == ((n,), np.int64)
    assert (contrast.held_out.shape, contrast.held_out.dtype) == ((n,), np.bool_)
    assert Counter(contrast.words.tolist()) == dict.fromkeys(range(40), 5)
    assert contrast.held_out.sum() in range(60, 75, 5)


@each
def test_a_cluster_is_a_pair_of_marked_words_and_no_word_is_on_both_sides_of_the_split(contrast):
    pairs = [(marked(positive), marked(negative)) for positive, negative in contrast.sentences]
    assert len(set(zip(pairs, contrast.words.tolist(), strict=True))) == len(set(pairs)) == 40
    clusters = {word: cluster for pair, cluster in zip(pairs, contrast.words, strict=True) for word in pair}
    for pair, cluster in zip(pairs, contrast.words, strict=True):
        assert {clusters[word] for word in pair} == {cluster}  # a word has one cluster
    held_out, train = (
        {word.lower() for pair, out in zip(pairs, contrast.held_out, strict=True) if out == side for word in pair}
        for side in (True, False)
    )
    assert held_out
    assert train
    assert not held_out & train


@each
def test_the_sentences_of_a_pair_differ_in_exactly_one_word(contrast):
    for positive, negative in contrast.sentences:
        words = list(zip(positive.split(" "), negative.split(" "), strict=True))
        (differ,) = [(a, b) for a, b in words if a != b]
        in_mark = all(word.startswith("[") for word in differ)
        assert in_mark == (contrast.name not in IN_CONTEXT)
        assert (marked(positive) == marked(negative)) == (contrast.name in IN_CONTEXT)


@each
def test_no_sentence_occurs_twice_in_a_concept(contrast):
    sentences = [sentence for pair in contrast.sentences for sentence in pair]
    assert len(set(sentences)) == len(sentences)
    assert len({sentence.replace("[", "").replace("]", "") for sentence in sentences}) == len(sentences)


@each
def test_every_frame_is_on_both_sides_of_the_split(contrast):
    frames = [tuple(re.sub(r"\[\w+\]", "[]", side) for side in pair) for pair in contrast.sentences]
    assert len(set(frames)) >= 10
    held_out, train = (
        {frame for frame, out in zip(frames, contrast.held_out, strict=True) if out == side} for side in (True, False)
    )
    assert held_out == train


@each
def test_states_belong_to_their_sentences(contrast):
    for rows in (contrast.positive, contrast.negative):
        squares = (rows**2).sum(axis=1)
        distance = squares[:, None] - 2 * rows @ rows.T + squares  # squared
        np.fill_diagonal(distance, np.inf)
        nearest = contrast.words[distance.argmin(axis=1)]
        assert (nearest == contrast.words).mean() > 0.9  # the same word in another frame


@each
def test_the_concept_is_in_the_held_out_states_as_the_provenance_page_says(contrast):
    train = ~contrast.held_out
    direction = (contrast.positive[train] - contrast.negative[train]).mean(axis=0, dtype=np.float64)
    positive, negative = contrast.positive[~train] @ direction, contrast.negative[~train] @ direction
    assert auc(positive, negative) > 0.8
    (row,) = re.findall(rf"^\| {contrast.name} \|.*\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, flags=re.M)
    assert int(row[0]) == len(positive)
    assert float(row[1]) == pytest.approx(auc(positive, negative), abs=5.1e-4)
    assert float(row[2]) == pytest.approx((positive > negative).mean(), abs=5.1e-4)


def test_the_files_are_those_of_the_provenance_page():
    for file, count in ((TEXT, 2800), (STATES, 2800)):
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert f"| `{file.name}` | {count} | {len(content):,} | `{digest}` |" in PAGE
    assert STATES.stat().st_size < 4_500_000
    states = np.load(STATES, allow_pickle=False)
    assert (states.shape, states.dtype) == ((2800, 2, 384), np.float16)


def test_the_loader_gives_every_line_of_the_text_its_own_states():
    header, *lines = [line.split("\t") for line in TEXT.read_text(encoding="utf-8").splitlines()]
    assert header == ["concept", "sides", "word", "part", "positive", "negative"]
    states = np.load(STATES, allow_pickle=False)
    given = {}
    for c in CONTRASTS:
        for i, pair in enumerate(c.sentences):
            sides, part = "two" if c.two_sided else "one", "held-out" if c.held_out[i] else "train"
            given[c.name, sides, part, *pair] = np.stack([c.positive[i], c.negative[i]])
    assert len(given) == len(lines)
    for (concept, sides, word, part, *pair), state in zip(lines, states, strict=True):
        assert np.array_equal(given[concept, sides, part, *pair], state)
        assert word == "/".join(dict.fromkeys(marked(sentence) for sentence in pair))
