"""k-sparse probing: how well do the few best latents of an SAE tell two classes apart?

Data, splits, ranking and probe are those of sae-probes 0.4 (Kantamneni et al. 2025, arXiv 2502.16681): rows are
activations at the last token of a text, and a probe sees k latents and no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxsae.conventions import Error, as_number, check_count, check_seed, library, shown
from proxsae.models.concepts import Parts, check_parts, check_sizes, codes, fitted, labelled, logistic, ranked
from proxsae.sae import SAE
from proxsae.sae.model import check_sae

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STRENGTHS = np.logspace(5, -5, 10)  # C of the logistic regression, the least regularised first
LEAST, MOST = 100, 1024  # rows for the test at least, and for training at most
RAREST = 0.05  # the smallest share of either class under imbalance


def split(
    labels: Any, train: int | None = None, positive: float | None = None, seed: int = 42
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the rows for training and for the test, drawn by the protocol of sae-probes.

    labels: two classes, one label a row; the larger value, such as 1 or True, is the positive class.
    train: how many rows to train on.  None takes all but 100, and at most 1024: the normal setting.  Fewer make the
    setting of scarcity.
    positive: the share of the positive class in both parts, in [0.05, 0.95]: the setting of imbalance, in which all
    shares have parts of the same size.  None takes one half.
    seed: of the draw, 42 in the protocol.

    The test has the rows that are left, but one, or as many of them as have that share.  Raises `Error` for what is
    not two classes, and where there are not rows enough.

    >>> train, test = split([0, 1] * 150)
    >>> len(train), len(test)
    (200, 99)
    """
    y = _two(labels)
    share = 0.5 if positive is None else as_number(positive)
    if share is None or not RAREST <= share <= 1 - RAREST:
        msg = f"positive={shown(positive)} must be a share in [{RAREST}, {1 - RAREST}]"
        raise Error(msg)
    up, down = (np.nonzero(y == number)[0] for number in (1, 0))
    n = len(y)
    if positive is not None:
        n = int(min(len(down) / (1 - RAREST), len(up) / (1 - RAREST)))
    count = min(n - LEAST, MOST) if train is None else check_count("train", train, 2)
    rest = n - count - 1 if positive is None else max(LEAST, n - count - 1)
    left = (len(up) - _positive(share, count), len(down) - (count - _positive(share, count)))
    while rest > 0 and (_positive(share, rest) > left[0] or rest - _positive(share, rest) > left[1]):
        rest -= 1
    if count < 2 or not 0 < _positive(share, rest) < rest or min(left) < 0:
        msg = f"{len(up)} rows of one class and {len(down)} of the other are too few to train on "
        msg += f"{'at least 2' if train is None else count} and to test on both: give more rows"
        raise Error(msg + ("" if train is None else ", or a smaller train"))
    rng = np.random.RandomState(check_seed(seed) % 2**32)
    sizes = [(m, k - m) for k, m in ((k, _positive(share, k)) for k in (count, rest))]
    drawn = [rng.choice(of, size, replace=False) for of, size in zip((up, down), sizes[0], strict=True)]
    others = [np.setdiff1d(of, taken) for of, taken in zip((up, down), drawn, strict=True)]
    test = [rng.choice(of, size, replace=False) for of, size in zip(others, sizes[1], strict=True)]
    return rng.permutation(np.concatenate(drawn)), rng.permutation(np.concatenate(test))


def probe(
    sae: SAE, rows: Any, labels: Any, parts: Parts | None = None, ks: Any = None, seed: int = 42
) -> list[dict[str, Any]]:
    """Train a probe on the k latents that best tell two classes apart, for each k, and test it.

    sae: signed or not, of any number of steps, such as `sae.unrolled(16, px.ExactStep())`.
    rows: activations (n, d_in), one a text; `px.models.last_tokens` collects them.
    labels: two classes, one label a row.
    parts: the numbers of the rows for training and for the test; by default `split(labels, seed=seed)`.
    ks: how many latents, by default 1, 2, 4, ..., 512 as far as there are latents.
    seed: of the split, the folds and the regression.

    Latents are ranked on the training rows by |difference of the class means| / mean |z| over z != 0, ties by the lower
    index, so that the sign of a latent does not matter.  The probe is a logistic regression with an l2 penalty that is
    chosen by AUC on rows held out of the training part.  Returned is a dict for each k: k; auc, accuracy and f1
    (weighted by class) on the test; latents, best first.

    Source: Kantamneni et al. 2025, and sae-probes 0.4.  Raises `Error` for rows and labels that do not fit, parts that
    overlap or lack a class, k > d_sae, and where scikit-learn is missing.

    >>> import proxsae as px
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((300, 4)).astype("float32"), np.arange(300) % 2
    >>> x[:, 0] += 9 * y
    >>> [found["k"] for found in probe(px.relu_sae(4, 16, lam=0.1), x, y, ks=(1, 4))]
    [1, 4]
    """
    data = labelled(check_sae(sae).rows(rows), labels, two=True)
    train, test = split(data.y, seed=seed) if parts is None else check_parts(parts, data)
    if ks is None:
        ks = [k for k in KS if k <= sae.d_sae]
    z, table = codes(sae, data.rows), []
    order = np.argsort(-ranked(z[train], data.y[train]), kind="stable")
    for k in check_sizes("ks", ks):
        if k > sae.d_sae:
            msg = f"k={k} exceeds the {sae.d_sae} latents of this SAE"
            raise Error(msg)
        X = z[:, order[:k]].toarray()
        model = _regression(X[train], data.y[train], check_seed(seed))
        found = _measured(model.decision_function(X[test]), data.y[test])
        table.append({"k": k, **found, "latents": tuple(order[:k].tolist())})
    return table


def dense_probes(rows: Any, labels: Any, parts: Parts | None = None, seed: int = 42) -> dict[str, dict[str, float]]:
    """What k-sparse probes are compared with: probes on the activations themselves, by name.

    "logistic regression"    the probe of `probe`, on all d numbers
    "difference in means"    x . (m1 - m0) > the middle of both means, m the means of the classes in training

    Each has auc, accuracy and f1 on the test.  Arguments and errors are those of `probe`.
    """
    x = torch.as_tensor(rows)
    if not x.is_floating_point() or x.ndim != 2 or not bool(x.isfinite().all()):
        msg = f"rows of shape {tuple(x.shape)} and {x.dtype} must be finite floats (n, d)"
        raise Error(msg)
    data = labelled(x, labels, two=True)
    train, test = split(data.y, seed=seed) if parts is None else check_parts(parts, data)
    X, y = x.double().cpu().numpy(), data.y
    low, high = (X[train][y[train] == number].mean(axis=0) for number in (0, 1))
    model = _regression(X[train], y[train], check_seed(seed))
    return {
        "logistic regression": _measured(model.decision_function(X[test]), y[test]),
        "difference in means": _measured((X[test] - (high + low) / 2) @ (high - low), y[test]),
    }


def _two(labels: Any) -> NDArray[np.int64]:
    count = len(labels) if hasattr(labels, "__len__") else 0
    return labelled(torch.zeros(count, 1), labels, two=True).y


def _positive(share: float, count: int) -> int:
    return int(np.ceil(share * count))


def _regression(X: NDArray[Any], y: NDArray[Any], seed: int) -> Any:
    """The logistic regression whose C has the best mean AUC over the folds, fitted to all rows."""
    best, folds = 1.0, _folds(y, seed)
    if folds:
        scores = [np.mean([_fold(C, X, y, *fold, seed) for fold in folds]) for C in STRENGTHS]
        best = float(STRENGTHS[int(np.argmax(scores))])
    order = np.random.RandomState(seed % 2**32).permutation(len(y))
    return fitted(logistic(seed, C=best), X[order], y[order])


def _folds(y: NDArray[Any], seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """(fit, held-out) rows: all pairs of up to 12 rows, six folds of up to 127, else the last fifth, at most 100."""
    choose, n = library("sklearn.model_selection", "sklearn"), len(y)
    if n <= 3:
        return []
    if n <= 12:
        folds = choose.LeavePOut(2).split(y)
    elif n < 128:
        folds = choose.StratifiedKFold(6, shuffle=True, random_state=seed % 2**32).split(y, y)
    else:
        folds = [np.split(np.arange(n), [n - min(n // 5, 100)])]
    return [(fit, held) for fit, held in folds if len(np.unique(y[held])) == 2]


def _fold(C: float, X: NDArray[Any], y: NDArray[Any], fit: Any, held: Any, seed: int) -> float:
    if len(np.unique(y[fit])) < 2:
        return 0.5
    model = fitted(logistic(seed, C=C), X[fit], y[fit])
    return _auc(y[held], model.decision_function(X[held]))


def _auc(y: NDArray[Any], scores: NDArray[Any]) -> float:
    return float(library("sklearn.metrics", "sklearn").roc_auc_score(y, scores))


def _measured(scores: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """auc, accuracy and f1 where a score > 0 says class 1."""
    found = scores > 0
    f1 = library("sklearn.metrics", "sklearn").f1_score(y, found, average="weighted")
    return {"auc": _auc(y, scores), "accuracy": float((found == y).mean()), "f1": float(f1)}
