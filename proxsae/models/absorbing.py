"""Feature absorption: a latent that tells a class stays silent on some of its rows, and another one speaks for it.

An SAE may have a latent for "begins with S" that does not fire on "snake", whose own latent holds that direction as
well.  Chanin et al. 2024 (arXiv 2409.14507) found it; the measures are those of SAEBench (Karvonen et al. 2025).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from proxsae.conventions import library
from proxsae.models.concepts import (
    Concept,
    Parts,
    atoms_of,
    check_parts,
    codes,
    divided,
    fires_more,
    fitted,
    labelled,
    logistic,
    ranked,
)
from proxsae.sae import SAE
from proxsae.sae.model import check_sae

MOST = 10  # latents that may tell a class together
JUMP = 0.03  # of F1, by which a further one has to help
SHARE = 0.4  # of the row's projection on the probe, which the absorbers have to carry
ALIGNED, ALIGNED_EACH = 0.025, 0.1  # |cosine| of an absorber's atom and the probe: of one alone, and of each of several
ABSORBERS = 3  # latents that may absorb together


def absorption(sae: SAE, rows: Any, labels: Any, parts: Parts | None = None, seed: int = 42) -> list[dict[str, Any]]:
    """Measure for each class on how many of its rows the latents that tell it stay silent, and another speaks for them.

    sae: signed or not, of any number of steps.
    rows, labels: activations (n, d_in) and a class each; for first letters those at words, and the letters.
    parts: the numbers of the rows for training and for the test; by default a third of each class is held out.
    seed: of the parts and the probes.

    For each class a linear probe w is trained on the rows.  The latents that tell the class are the first k of those
    that fire more on it, ranked as `probe` ranks them; k grows while that raises the F1 of their probe by more than
    0.03, up to 10 (feature splitting).  Looked at are the test rows of the class that w tells right.  A latent carries
    z_j (d_j . w/||w||), the row (x - b_dec) . w/||w||; SAEBench measures the row from 0.

    full        share of the rows on which no latent of the class fires, and the latent that carries most, with
                |cos(d_j, w)| >= 0.025, carries 0.4 of the row or more
    fraction    mean over the rows of a / (a + m): m what the latents of the class carry, a what up to three others
                with |cos| >= 0.1 carry, at most what m lacks; 1 where m <= 0, and 0 where they carry less than 0.4 of
                the row, or m carries all of it

    Returned is a dict for each class: label; f1 of w on the test, which SAEBench wants to be 0.6 or more; rows, how
    many are looked at; latents, that tell the class; full and fraction, None for no rows.
    Ours are the ranking, where SAEBench takes the weights of an l1 probe, and |cos| and mean |z|, so that nothing
    depends on the sign of a latent.

    Raises `Error` for rows, labels and parts that do not fit, and where scikit-learn is missing.
    """
    data = labelled(check_sae(sae).rows(rows), labels)
    train, test = divided(data.y, seed) if parts is None else check_parts(parts, data)
    x, z = data.rows.double().cpu().numpy(), codes(sae, data.rows, units="row")
    start = sae.normalized(data.rows).undo(sae.b_dec.detach()).double().cpu().numpy()
    atoms = atoms_of(sae)
    norms = np.linalg.norm(atoms, axis=1)
    table = []
    for c, label in enumerate(data.classes):
        y = (data.y == c).astype(np.int64)
        probe = Concept.of(x[train], y[train], seed)
        right = test[(y[test] == 1) & (probe.scores(x[test]) > 0)]
        latents = _telling(z[train], y[train], z[test], y[test], seed)
        w = probe.w / max(float(np.linalg.norm(probe.w)), 1e-300)
        part = z[right].toarray() * (atoms @ w)
        cosines = np.abs(np.divide(atoms @ w, norms, out=np.zeros_like(norms), where=norms > 0))
        whole = (x[right] - np.broadcast_to(start, x.shape)[right]) @ w
        full, fraction = _absorbed(part, z[right][:, latents].toarray(), whole, cosines, latents)
        found = {"full": float(full.mean()), "fraction": float(fraction.mean())} if len(right) else {}
        table.append({
            "label": label, "f1": _f1(y[test], probe.scores(x[test]) > 0), "rows": len(right),
            "latents": tuple(latents.tolist()), "full": found.get("full"), "fraction": found.get("fraction"),
        })  # fmt: skip
    return table


def _telling(
    z: sparse.csr_matrix, y: NDArray[Any], z_test: sparse.csr_matrix, y_test: NDArray[Any], seed: int
) -> NDArray[np.int64]:
    """The latents that tell y == 1, best first: as many as help."""
    score = np.where(fires_more(z, y), ranked(z, y), -1.0)
    order = np.argsort(-score, kind="stable")[: min(MOST, max(1, int((score > 0).sum())))]
    best, count = -np.inf, 0
    for k in range(1, len(order) + 1):
        model = fitted(logistic(seed, class_weight="balanced"), z[:, order[:k]].toarray(), y)
        f1 = _f1(y_test, model.predict(z_test[:, order[:k]].toarray()))
        if f1 <= best + JUMP:
            break
        best, count = f1, k
    return order[:count]


def _absorbed(
    part: NDArray[np.float64],
    own: NDArray[np.float64],
    whole: NDArray[np.float64],
    cosines: NDArray[np.float64],
    latents: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which rows are fully absorbed, and the absorbed fraction of each, (rows,).

    part (rows, P) and whole (rows,) are what latents and row carry, own (rows, k) the codes of the class's latents.
    """
    top, each = part.argmax(axis=1), np.arange(len(part))
    silent, enough = (own == 0).all(axis=1), (whole > 0) & (part[each, top] >= SHARE * whole)
    full = silent & enough & (cosines[top] >= ALIGNED)
    others = np.where(cosines >= ALIGNED_EACH, part, 0.0)
    others[:, latents] = 0.0
    taken = np.sort(others.clip(min=0), axis=1)[:, -ABSORBERS:].sum(axis=1)
    m = part[:, latents].sum(axis=1)
    a = np.minimum(taken, whole - m)
    fraction = np.where(m <= 0, 1.0, np.divide(a, a + m, out=np.zeros_like(a), where=a + m > 0))
    fraction[(m >= whole) | (taken < SHARE * whole) | (whole <= 0)] = 0.0
    return full, fraction


def _f1(y: NDArray[Any], found: NDArray[Any]) -> float:
    return float(library("sklearn.metrics", "sklearn").f1_score(y, found, zero_division=0.0))
