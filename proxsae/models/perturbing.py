"""Perturb a concept through its latents: SAEBench's TPP and SCR (Karvonen et al. 2025, arXiv 2503.09532).

    tpp   targeted probe perturbation: do the latents of one class move its probe, and leave those of other classes?
    scr   spurious correlation removal: does a biased probe get better when the latents of the bias are taken out?

Latents are taken out of a row as `steer` does with "*0": x -> x - sum_j z_j d_j, so that what the SAE does not explain
stays.  On a linear probe w this is w . x - sum_j z_j (w . d_j).  Probes are logistic regressions on standardised rows,
both classes of equal weight (ours: SAEBench draws classes of equal size instead).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_seed
from proxsae.models.concepts import (
    Concept,
    Parts,
    atoms_of,
    balanced_accuracy,
    check_parts,
    check_sizes,
    codes,
    divided,
    fires_more,
    labelled,
    mean,
)
from proxsae.sae import SAE
from proxsae.sae.model import check_sae

NS = (2, 5, 10, 20, 50, 100, 500)  # how many latents SAEBench takes out


def tpp(
    sae: SAE, rows: Any, labels: Any, parts: Parts | None = None, ns: Any = NS, seed: int = 42
) -> list[dict[str, Any]]:
    """Take out the n latents that tell a class, for each class, and measure what all probes lose.

        tpp = mean_c (A_c - A_c without the latents of c)  -  mean_{c' != c} (A_c' - A_c' without the latents of c)

    with A_c the accuracy, balanced over both classes, of the probe that tells class c from the others.  It is 1/2 where
    perfect probes fall to chance by the latents of their own class and stay whole by those of others, and 0 where
    latents do nothing, or the same to all probes.

    sae: signed or not, of any number of steps.
    rows, labels: activations (n, d_in), one a text, and two or more classes.
    parts: the numbers of the rows for training and for the test; by default a third of each class is held out.
    ns: how many latents are taken out; where fewer have an effect, these are.
    seed: of the parts and the probes.

    The effect of a latent on class c is (mean z on c - mean z on others) (w_c . d_j); counted are latents that fire
    more on c than elsewhere, by their mean |z|.  For codes >= 0 that is SAEBench's effect; the absolute value makes it
    one that does not change with the sign of a latent (ours).

    Returned is a dict for each n: n; tpp; intended and unintended, its two parts; accuracy, the mean A_c.
    Raises `Error` for rows, labels and parts that do not fit, and where scikit-learn is missing.
    """
    data, ns = labelled(check_sae(sae).rows(rows), labels), check_sizes("ns", ns)
    train, test = divided(data.y, seed) if parts is None else check_parts(parts, data)
    x, z = data.rows.double().cpu().numpy(), codes(sae, data.rows, units="row")
    C = len(data.classes)
    ones = np.stack([data.y == c for c in range(C)], axis=1).astype(np.int64)
    probes = [Concept.of(x[train], ones[train, c], seed) for c in range(C)]
    along = atoms_of(sae) @ np.stack([probe.w for probe in probes], axis=1)  # (P, C)
    scores = np.stack([probe.scores(x[test]) for probe in probes], axis=1)

    def accuracies(moved: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([balanced_accuracy(moved[:, c], ones[test, c]) for c in range(C)])

    whole, orders = accuracies(scores), []
    for c in range(C):
        y = ones[train, c]
        effect = (mean(z[train][y == 1]) - mean(z[train][y == 0])) * along[:, c] * fires_more(z[train], y)
        orders.append(_largest(effect))
    table = []
    for n in ns:
        lost = np.stack([
            whole - accuracies(scores - z[test][:, order[:n]] @ along[order[:n]]) for order in orders
        ])  # fmt: skip
        own = np.eye(C, dtype=bool)
        intended, unintended = float(lost[own].mean()), float(lost[~own].mean())
        table.append({
            "n": n, "tpp": intended - unintended, "intended": intended, "unintended": unintended,
            "accuracy": float(whole.mean()),
        })  # fmt: skip
    return table


def scr(sae: SAE, rows: Any, wanted: Any, spurious: Any, ns: Any = NS, seed: int = 42) -> list[dict[str, Any]]:
    """Take the latents of a spurious attribute out of a probe that was trained on a biased sample.

        scr = (A without the latents - A) / (A of an unbiased probe - A)

    with A the accuracy, for the wanted attribute, of a probe that was trained where both attributes agree.  All four
    groups of rows have equal size, that of the smallest; a third of each is held out for A.  1 says that all of the
    bias is gone, 0 that nothing was gained.

    sae: signed or not, of any number of steps.
    rows: activations (n, d_in), one a text.
    wanted, spurious: two attributes of two classes, one label a row each.
    ns: how many latents are taken out, those with the largest |mean z on one class - on the other| |w . d_j|, w the
    probe of the spurious attribute.
    seed: of the groups, the parts and the probes.

    Returned is a dict for each n: n; scr, None where the bias did no harm; biased, ablated, unbiased, the accuracies.
    SAEBench does both directions, and counts the one with the lower accuracy `biased`: exchange the attributes.
    Raises `Error` for rows and labels that do not fit, a group with fewer than three rows, and where scikit-learn is
    missing.
    """
    ns, rng, x = check_sizes("ns", ns), np.random.RandomState(check_seed(seed) % 2**32), check_sae(sae).rows(rows)
    a, b = (labelled(x, y, name, two=True).y for name, y in (("wanted", wanted), ("spurious", spurious)))
    group = 2 * a + b
    sizes = np.bincount(group, minlength=4)
    if sizes.min() < 3:
        msg = f"wanted and spurious make groups of {', '.join(map(str, sizes))} rows, but each of the four needs 3"
        raise Error(msg)
    equal = np.concatenate([rng.permutation(np.nonzero(group == g)[0])[: sizes.min()] for g in range(4)])
    train, test = (equal[part] for part in divided(group[equal], seed))
    X, z = x.double().cpu().numpy(), codes(sae, x, units="row")
    agree = train[a[train] == b[train]]
    biased = Concept.of(X[agree], a[agree], seed)
    bias, unbiased = (Concept.of(X[train], y[train], seed) for y in (b, a))
    atoms, y = atoms_of(sae), b[train]
    order = _largest(np.abs((mean(z[train][y == 1]) - mean(z[train][y == 0])) * (atoms @ bias.w)))
    along, scores = atoms @ biased.w, biased.scores(X[test])
    before, best = (balanced_accuracy(s, a[test]) for s in (scores, unbiased.scores(X[test])))
    table = []
    for n in ns:
        after = balanced_accuracy(scores - z[test][:, order[:n]] @ along[order[:n]], a[test])
        share = (after - before) / (best - before) if best > before else None
        table.append({"n": n, "scr": share, "biased": before, "ablated": after, "unbiased": best})
    return table


def _largest(effect: NDArray[np.float64]) -> NDArray[np.int64]:
    """The latents with an effect, largest first, ties by the lower index."""
    order = np.argsort(-effect, kind="stable")
    return order[effect[order] != 0]
