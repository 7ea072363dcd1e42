"""Do more steps help what SAEBench measures?  k-sparse probing, TPP, SCR and absorption, by 1 and by 16 exact steps.

    python benchmarks/saebench.py smollm2.gguf sae_probes-0.4.2-py3-none-any.whl american-english work SAE [SAE ...]

The inputs are a model, the wheel with the texts of sae-probes, a list of words, a folder for what is worked out, and
SAEs in folders KIND-sSEED.  All SAEs have the same density at all depths: lam is matched where there is one.  Rows and
measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import proxsae as px
from proxsae.disk import replace_file
from proxsae.models.huggingface import open_model
from proxsae.studies.density import matched
from proxsae.studies.statistics import over_seeds

ROWS = 1200  # texts of a set, as many of each class
TWO = (
    "87_glue_cola", "92_glue_sst2", "21_headline_istrump", "5_hist_fig_ismale", "105_click_bait",
    "130_temp_cat_Frequency", "149_twt_emotion_happiness",
)  # fmt: skip
MANY = ("17_world_country", "46_context_type", "97_news_class", "108_athlete_sport", "27_art_type")
BIASED = ("92_glue_sst2", "5_hist_fig_ismale")  # where the label is wanted, and a long text is the spurious attribute
STEPS, KS, NS, SPLITS = (1, 16), (1, 4, 16, 64), (2, 10, 50), 5
WORDS = 100  # of each letter, at most
F1 = 0.6  # of the probe of a letter, at least

# Texts and their rows


class Rows:
    """The activations at the last tokens of the texts of each set, worked out when they are not there."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, Path(given.work)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model: Any = None

    def __call__(self, name: str) -> dict[str, NDArray[Any]]:
        """rows (n, d), labels, and whether a text is longer than the median one."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            if self.model is None:
                self.model, self.tokenizer = open_model(self.given.model)
                self.tokenizer.padding_side = "right"
            texts, labels = zip(*self._texts(name), strict=True)
            ids = self.tokenizer(list(texts))["input_ids"]
            kept = [i for i, row in enumerate(ids) if 2 <= len(row) <= 256]  # the first token is an attention sink
            rows, content = self._rows([ids[i] for i in kept]), io.BytesIO()
            norms = np.linalg.norm(rows, axis=1)
            usual = norms <= 10 * np.median(norms)  # later tokens are sinks too, now and then
            length = np.array([len(texts[i]) for i in kept])
            np.savez(
                content, rows=rows[usual], labels=np.array(labels)[kept][usual],
                long=(length > np.median(length))[usual],
            )  # fmt: skip
            replace_file(file, content.getvalue())
            tokens = sum(len(ids[i]) for i in kept)
            print(f"{name}: {usual.sum()} texts, {(~usual).sum()} outliers left out, {tokens} tokens", flush=True)
        with np.load(file) as found:
            return dict(found)

    def _rows(self, ids: list[list[int]]) -> NDArray[np.float32]:
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # texts of one length together: little padding
        parts = [order[i : i + 32] for i in range(0, len(order), 32)]
        batches = (
            dict(self.tokenizer.pad({"input_ids": [ids[i] for i in part]}, return_tensors="pt")) for part in parts
        )
        found = px.models.last_tokens(self.model, self.given.module, batches)
        back = np.empty(len(ids), dtype=np.int64)
        back[order] = np.arange(len(ids))
        rows: NDArray[np.float32] = found.numpy()[back]
        return rows

    def _set(self, name: str) -> list[tuple[str, str]]:
        with zipfile.ZipFile(self.given.texts) as wheel:
            packed = wheel.read(f"sae_probes/data/cleaned_data/{name}.csv.zst")
        import zstandard

        lines = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read().decode("utf-8-sig")
        return [(row["prompt"], row["target"]) for row in csv.DictReader(io.StringIO(lines))]

    def _texts(self, name: str) -> Iterator[tuple[str, str]]:
        """(text, label)."""
        if name == "words":
            words = [w for w in Path(self.given.words).read_text("utf-8").split() if re.fullmatch("[a-z]{3,}", w)]
            single = [w for w in words if len(self.tokenizer(f" {w}")["input_ids"]) == 1]
            for word, letter in equally([(w, w[0]) for w in dict.fromkeys(single)], WORDS):
                yield f" apple has the first letter: A\n {word}", letter
        else:
            table = self._set(name)
            yield from equally(table, ROWS // len({label for _, label in table}))


def equally(table: list[tuple[str, Any]], most: int | None = None) -> list[tuple[str, Any]]:
    """The first of each label in an order drawn by seed 42: `most`, or as many as the rarest label has."""
    groups: dict[Any, list[int]] = {}
    for i in np.random.RandomState(42).permutation(len(table)):
        groups.setdefault(table[i][1], []).append(i)
    most = min(map(len, groups.values())) if most is None else most
    return [table[i] for i in sorted(i for some in groups.values() for i in some[:most])]


# Measurements


def measure(rows: Rows, sae: px.SAE) -> dict[str, float]:
    """All measures of one SAE at one depth, by name."""
    found: dict[str, float] = {}
    for name in TWO:
        data = rows(name)
        for row in px.models.probe(sae, data["rows"], data["labels"], ks=KS):
            found |= {f"probe {what} k={row['k']} {name}": row[what] for what in ("auc", "f1")}
    for name in MANY:
        data = rows(name)
        for row in px.models.tpp(sae, data["rows"], data["labels"], ns=NS):
            found[f"tpp n={row['n']} {name}"] = row["tpp"]
    for name in BIASED:
        data = rows(name)
        for n, value in corrected(sae, data).items():
            found[f"scr n={n} {name}"] = value
    data = rows("words")
    letters = [row for row in px.models.absorption(sae, data["rows"], data["labels"]) if row["f1"] >= F1]
    for what in ("full", "fraction"):
        found[f"absorption {what} words"] = float(np.mean([row[what] for row in letters if row[what] is not None]))
    found["latents a letter words"] = float(np.mean([len(row["latents"]) for row in letters]))
    return found


def corrected(sae: px.SAE, data: dict[str, NDArray[Any]]) -> dict[int, float]:
    """SCR for each n, over all splits: the share of the gap that is closed, in the direction that is biased more."""
    tables = []
    for pair in ((data["labels"], data["long"]), (data["long"], data["labels"])):
        splits = [px.models.scr(sae, data["rows"], *pair, ns=NS, seed=seed) for seed in range(SPLITS)]
        tables.append({n: [split[i] for split in splits] for i, n in enumerate(NS)})
    lower = min(tables, key=lambda table: sum(row["biased"] for row in table[NS[0]]))
    return {
        n: sum(row["ablated"] - row["biased"] for row in table) / sum(row["unbiased"] - row["biased"] for row in table)
        for n, table in lower.items()
    }


def main() -> None:
    """Measure each SAE at each depth, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "texts", "words", "work"):
        parser.add_argument(name)
    parser.add_argument("saes", nargs="+")
    parser.add_argument("--module", default="model.layers.15")
    parser.add_argument("--k", type=float, default=32, help="non-zeros a row, matched where there is a lam")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, journal = Rows(given), Path(given.work) / "measured.json"
    done: dict[str, dict[str, float]] = json.loads(journal.read_text()) if journal.exists() else {}
    sample = torch.from_numpy(np.concatenate([rows(name)["rows"][::20] for name in (*TWO, *MANY)]))
    if "dense" not in done:
        dense = {name: px.models.dense_probes(rows(name)["rows"], rows(name)["labels"]) for name in TWO}
        done["dense"] = {
            f"probe {what} {kind} {name}": table[what]
            for name, both in dense.items() for kind, table in both.items() for what in ("auc", "f1")
        }  # fmt: skip
    for path in given.saes:
        sae = px.load(path)
        for steps in STEPS:
            key = f"{Path(path).name} T={steps}"
            if key not in done:
                deep = sae.unrolled(steps, px.ExactStep())
                deep, _ = matched(deep, sample, given.k)
                done[key] = measure(rows, deep) | {"l0": float((deep.encode(sample) != 0).sum(dim=1).float().mean())}
                replace_file(journal, json.dumps(done, indent=1).encode())
                print(key, flush=True)
    show(done, sorted({Path(path).name.rpartition("-s")[0] for path in given.saes}))


# The table


def show(done: dict[str, dict[str, float]], kinds: list[str]) -> None:
    """Means over sets; intervals over seeds of the mean, and of the gain by 16 steps over seeds and over sets."""
    measures = list(dict.fromkeys(re.sub(r" \S+$", "", name) for name in next(reversed(done.values())) if name != "l0"))
    for name, value in sorted(averages(done["dense"]).items()):
        print(f"{name}: {value:.3f}")
    print("\n| measure | SAE | T = 1 | T = 16 | gain, over seeds | gain, over sets |\n|---|---|---|---|---|---|")
    for what in measures:
        for kind in kinds:
            by_steps = [seeds(done, kind, steps) for steps in STEPS]
            both = [[averages(row)[what] for row in one] for one in by_steps]
            sets = [name for name in by_steps[0][0] if re.sub(r" \S+$", "", name) == what]
            gains = [
                np.mean([b[name] - a[name] for a, b in zip(*by_steps, strict=True)]) if by_steps[0] else 0.0
                for name in sets
            ]
            gain = [b - a for a, b in zip(*both, strict=True)]
            cells = [interval(both[0]), interval(both[1]), interval(gain), interval(gains) if len(sets) > 1 else "-"]
            print(f"| {what} | {kind} | {' | '.join(cells)} |")


def seeds(done: dict[str, dict[str, float]], kind: str, steps: int) -> list[dict[str, float]]:
    """The measurements of all seeds of one kind of SAE, in the order of the seeds."""
    return [done[key] for key in sorted(done) if re.fullmatch(rf"{re.escape(kind)}-s\d+ T={steps}", key)]


def averages(found: dict[str, float]) -> dict[str, float]:
    """Each measure, averaged over the sets."""
    values: dict[str, list[float]] = {}
    for name, value in found.items():
        values.setdefault(re.sub(r" \S+$", "", name), []).append(value)
    return {name: float(np.mean(some)) for name, some in values.items()}


def interval(values: Iterable[Any]) -> str:
    """A mean with its 95 % interval."""
    found = over_seeds(values)
    between = "" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.mean:.3f}{between}"


if __name__ == "__main__":
    main()
