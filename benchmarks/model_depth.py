"""Does depth help a language model, or only the error?  Its loss and KL with an SAE in place, by the number of steps.

    python benchmarks/model_depth.py smollm2.gguf texts.jsonl rows work SAE [SAE ...] --module model.layers.15

SAEs stand in folders KIND-sSEED, such as saes/abstopk-s0.  Steps are exact ones of the same weights.  Where an SAE has
a lam it is matched to its density at one step, on 512 of the rows that it was trained on.  Measurements are kept in the
folder `work`, a file for each SAE, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import proxsae as px
from proxsae.disk import replace_file
from proxsae.metrics import l0
from proxsae.models.huggingface import open_model, texts, token_batches
from proxsae.models.losses import compare
from proxsae.studies.density import matched
from proxsae.studies.statistics import over_seeds

STEPS = (1, 2, 4, 8, 16)
COLUMNS = ("nmse", "excess", "kl", "recovered_mean")


def some(batches: list[dict[str, Any]], tokens: int, pad: int) -> list[dict[str, torch.Tensor]]:
    """Rows of all lengths, drawn by a seed until they have so many tokens, the short ones together."""
    rows = [ids[real.bool()] for b in batches for ids, real in zip(b["input_ids"], b["attention_mask"], strict=True)]
    drawn: list[torch.Tensor] = []
    for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist():
        drawn.append(rows[i])
        if sum(map(len, drawn)) >= tokens:
            break
    drawn.sort(key=len)
    pack = torch.nn.utils.rnn.pad_sequence
    return [
        {
            "input_ids": pack(drawn[i : i + 8], batch_first=True, padding_value=pad),
            "attention_mask": pack([torch.ones_like(row) for row in drawn[i : i + 8]], batch_first=True),
        }
        for i in range(0, len(drawn), 8)
    ]


def main() -> None:
    """Measure each SAE at each depth, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "texts", "rows", "work"):
        parser.add_argument(name)
    parser.add_argument("saes", nargs="+")
    parser.add_argument("--module", default="model.layers.15")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work, loop = Path(given.work), None
    work.mkdir(parents=True, exist_ok=True)
    x = torch.from_numpy(px.data.open_rows(given.rows, outliers="drop")[:512])
    for path in given.saes:
        file = work / f"{Path(path).name}.json"
        if file.exists():
            continue
        if loop is None:
            model, tokenizer = open_model(given.model)
            loop = (
                model,
                some(list(token_batches(texts([given.texts]), tokenizer)), given.tokens, tokenizer.pad_token_id),
            )
        sae = px.load(path).unrolled(1)
        deeper = {str(t): matched(sae.unrolled(t, px.ExactStep()), x, l0(sae.encode(x)))[0] for t in STEPS}
        found = compare(*loop, given.module, deeper, skip=1)
        replace_file(file, json.dumps(found, indent=1).encode())
        print(path, flush=True)
    show(work, sorted({Path(path).name.rpartition("-s")[0] for path in given.saes}))


def show(work: Path, kinds: list[str]) -> None:
    """The table: means over seeds with Student's 95 % intervals, and what 16 steps give back."""
    print(f"| SAE | steps | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for kind in kinds:
        seeds = [json.loads(file.read_text()) for file in sorted(work.glob(f"{kind}-s*.json"))]
        for one in seeds:
            for row in one.values():
                row["excess"] = row["loss_spliced"] - row["loss"]
        for t in map(str, STEPS):
            cells = [interval([one[t][name] for one in seeds]) for name in COLUMNS]
            print(f"| {kind} | {t} | {' | '.join(cells)} |")
        first, last = str(STEPS[0]), str(STEPS[-1])
        back = interval([1 - one[last]["excess"] / one[first]["excess"] for one in seeds])
        error = interval([one[last]["nmse"] / one[first]["nmse"] for one in seeds])
        print(
            f"{kind}, {len(seeds)} seeds: of the loss that one step costs {last} give back {back}; nmse times {error}"
        )


def interval(values: list[float]) -> str:
    """A mean with its 95 % interval."""
    found = over_seeds(values)
    return f"{found.mean:.3f}" + ("" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]")


if __name__ == "__main__":
    main()
