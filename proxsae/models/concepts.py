"""What probes share: rows with labels, their parts for training and test, codes, and a linear probe for one class.

scikit-learn fits the logistic regressions; it is an extra, imported when it is needed.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from proxsae.conventions import Error, check_counts, check_seed, library, shown
from proxsae.sae import SAE
from proxsae.sae.evaluation import encode_rows

TEST = 3  # one row in three of each class is held out for a test
STRENGTH = 0.01  # C of a linear probe on standardised rows: of 1, 0.1, ... 1e-4 the best on six of seven sets (ours)
Parts = tuple[NDArray[np.int64], NDArray[np.int64]]


class Labelled(NamedTuple):
    """Rows (n, d), and for each the number of its class among `classes`, sorted."""

    rows: Tensor
    y: NDArray[np.int64]
    classes: tuple[Any, ...]


def labelled(x: Tensor, labels: Any, name: str = "labels", two: bool = False) -> Labelled:
    """Rows (n, d) and their labels, one a row, of two classes or more; or `Error`."""
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if given.shape != (len(x),):
        msg = f"{name} has shape {given.shape}, but {len(x)} rows need one label each"
        raise Error(msg)
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        msg = f"{name} holds NaN or infinity, but a label names a class: leave such rows out"
        raise Error(msg)
    try:
        classes, y = np.unique(given, return_inverse=True)
    except TypeError:
        msg = f"{name} holds values that cannot be sorted, such as {shown(given[0])}: give numbers, or texts"
        raise Error(msg) from None
    if len(classes) < 2 or (two and len(classes) > 2):
        some = ", ".join(map(shown, classes[:3].tolist())) + (", ..." if len(classes) > 3 else "")
        msg = f"{name} has {len(classes)} classes ({some}), but needs {'two' if two else 'two or more'}"
        raise Error(msg + (": px.models.tpp takes more" if len(classes) > 2 else ""))
    return Labelled(x, y.astype(np.int64), tuple(classes.tolist()))


def divided(y: NDArray[np.int64], seed: int) -> Parts:
    """One row in three of each class for the test, the others for training, both in random order by `seed`."""
    rng = np.random.RandomState(check_seed(seed) % 2**32)
    test = []
    for number in np.unique(y):
        (where,) = np.nonzero(y == number)
        if len(where) < TEST:
            msg = f"labels has a class with {len(where)} rows, but one in {TEST} is held out: give {TEST} or more"
            raise Error(msg)
        test.append(rng.permutation(where)[: len(where) // TEST])
    held = rng.permutation(np.concatenate(test))
    return rng.permutation(np.setdiff1d(np.arange(len(y)), held)), held


def check_parts(parts: Any, data: Labelled) -> Parts:
    """The numbers of the rows for training and for the test, apart, with all classes in both; or `Error`."""
    try:
        train, test = (np.asarray(part) for part in parts)
    except (TypeError, ValueError):
        train = test = np.zeros(0)
    n = len(data.y)
    if any(p.dtype.kind not in "iu" or p.ndim != 1 or not len(p) or p.min() < 0 or p.max() >= n for p in (train, test)):
        msg = f"parts={shown(parts)} must be two arrays of row numbers in [0, {n}), such as px.models.split(labels)"
        raise Error(msg)
    if len(np.intersect1d(train, test)):
        msg = f"parts share row {np.intersect1d(train, test)[0]}: a row that was trained on is no test"
        raise Error(msg)
    for part, what in ((train, "training"), (test, "test")):
        if missing := set(range(len(data.classes))) - set(data.y[part].tolist()):
            msg = f"the {what} part of parts lacks class {shown(data.classes[min(missing)])}: both need rows of each"
            raise Error(msg)
    return train.astype(np.int64), test.astype(np.int64)


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """How many latents, in turn; or `Error`."""
    sizes = check_counts(name, values)
    if not sizes:
        msg = f"{name} is empty, but a table needs at least one number of latents"
        raise Error(msg)
    return sizes


def codes(sae: SAE, x: Tensor, units: str = "code") -> sparse.csr_matrix:
    """The codes of rows (n, d), sparse (n, P); with units="row" as they are added up to a row of x.

    The two differ where rows are normalised: z d_j is then scaled with its row.
    """
    found = encode_rows(sae, x)
    indices, values = found["indices"], found["values"].astype(np.float64)
    if units == "row":
        scale = sae.normalized(x).scale.double().reshape(-1, 1).cpu().numpy()
        values = values * scale
    ends = np.arange(len(indices) + 1) * indices.shape[1]
    z = sparse.csr_matrix((values.ravel(), indices.ravel(), ends), shape=(len(x), sae.d_sae))
    z.eliminate_zeros()
    return z


def atoms_of(sae: SAE) -> NDArray[np.float64]:
    """The atoms (P, d) in float64."""
    atoms: NDArray[np.float64] = sae.W_dec.detach().double().cpu().numpy()
    return atoms


def fires_more(z: sparse.csr_matrix, y: NDArray[Any]) -> NDArray[np.bool_]:
    """Which latents have a larger mean |z| on the rows of y == 1 than on the others, (P,): whatever their sign."""
    size = abs(z)
    return mean(size[y == 1]) > mean(size[y == 0])


def mean(z: sparse.csr_matrix) -> NDArray[np.float64]:
    """The mean of each column, (P,)."""
    return np.asarray(z.mean(axis=0), dtype=np.float64).ravel()


def ranked(z: sparse.csr_matrix, y: NDArray[Any]) -> NDArray[np.float64]:
    """How well each latent alone tells y == 1 from y == 0, (P,): |difference of the class means| over its mean |z|.

    The mean |z| is taken over z != 0, so that neither the scale of a latent nor its sign matters (sae-probes).
    """
    counts = np.maximum(1, np.asarray((z != 0).sum(axis=0)).ravel())
    size = np.asarray(abs(z).sum(axis=0)).ravel() / counts
    apart = np.abs(mean(z[y == 1]) - mean(z[y == 0]))
    return np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)


def logistic(seed: int, **how: Any) -> Any:
    """A logistic regression of scikit-learn with at most 1000 iterations."""
    return library("sklearn.linear_model", "sklearn").LogisticRegression(
        max_iter=1000, random_state=seed % 2**32, **how
    )


def fitted(model: Any, X: Any, y: NDArray[Any]) -> Any:
    """The model after its fit, without a warning where 1000 iterations were not enough."""
    library("sklearn", "sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


class Concept(NamedTuple):
    """A linear probe on rows x: class 1 where w . x + b > 0."""

    w: NDArray[np.float64]
    b: float

    @classmethod
    def of(cls, x: NDArray[np.float64], y: NDArray[Any], seed: int) -> Self:
        """The logistic regression of y (0 or 1) on standardised columns of x (n, d), both classes of equal weight."""
        middle, spread = x.mean(axis=0), x.std(axis=0)
        spread = np.where(spread > 0, spread, 1)
        model = fitted(logistic(seed, C=STRENGTH, class_weight="balanced"), (x - middle) / spread, y)
        w = model.coef_[0] / spread
        return cls(w, float(model.intercept_[0] - middle @ w))

    def scores(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """w . x + b of each row."""
        return x @ self.w + self.b


def balanced_accuracy(scores: NDArray[np.float64], y: NDArray[Any]) -> float:
    """The mean over both classes of the share of its rows that a score > 0 tells right."""
    return float(np.mean([(scores[y == 1] > 0).mean(), (scores[y == 0] <= 0).mean()]))
