"""scikit-learn estimators: codes in a given dictionary, and a sparse autoencoder that is trained by `fit`.

`solve`, `ista`, `train` and `SAE` do the work; what stands here lets pipelines, grid searches and pickles use them.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch

from proxsae.conventions import Error, as_array, is_torch
from proxsae.pytorch.iteration import ista, solve
from proxsae.sae import SAE
from proxsae.steps import Lipschitz
from proxsae.training import train

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    msg = "scikit-learn (1.6 or newer) is missing: pip install 'proxsae[sklearn]'"
    raise Error(msg) from None

FLOATS = [np.float64, np.float32]  # kept as they come; integers and half precision become the first


class _Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both estimators tell scikit-learn of themselves."""

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = [np.dtype(kind).name for kind in FLOATS]
        return tags

    def _rows(self, X: Any, **how: Any) -> Any:
        """Rows as scikit-learn checks them, in the order that torch needs; a mask, which it would lose, is refused."""
        if isinstance(X, np.ma.MaskedArray):
            as_array("X", X)
        return validate_data(self, X, dtype=FLOATS, order="C", **how)


class SparseCoder(_Transformer):
    """Codes of rows in a given dictionary, as a scikit-learn transformer: `solve`, or a number of steps of `ista`.

        z = argmin_z 1/2 ||x - D z||^2 + R(z)

    dictionary: atoms as rows, (n_components, n_features), of any norms; an array, or a tensor such as `sae.W_dec`.
    penalty: R, such as `L1(0.1)` or `KSparse(5)`; `nonneg=True` makes codes non-negative.
    steps: None, where codes are those of `solve`; or the number of steps of `ista` from z = 0.
    step: the step rule of `ista`, by default `Lipschitz()`; for `steps` only.
    tol: how near `solve` comes, by default 1e-6; without `steps` only.

    `fit` only checks, so `transform` works without it. `components_` is the dictionary.  `solve` works in float64, and
    rows that it leaves without a certificate give a ConvergenceWarning.  Codes have the dtype of the rows.

    Beside `sklearn.decomposition.SparseCoder`: its `lasso_lars` and `lasso_cd` with `transform_alpha` solve
    `L1(transform_alpha)`, and `positive_code` is `nonneg=True`: the same number, and the same codes to its tolerance.
    Its `threshold` is one step, `L1(transform_alpha)` with `steps=1`, up to the factor mu: codes here are mu times
    those (prop-one-step-is-an-sae).  Its `omp` searches greedily for what `KSparse(transform_n_nonzero_coefs)` asks,
    so that the codes agree where both find the support; `proxsae.reference.pursuit.omp` is that search.  `lars`, which
    stops on a path, and `omp` with a target error have no counterpart.

    Raises `Error` for a dictionary that does not fit or is all zeros, for what is not a penalty or couples rows, and
    where `ista` or `solve` does.

    >>> import proxsae as px
    >>> coder = SparseCoder(np.eye(3), px.L1(1.0))
    >>> codes = coder.fit_transform([[3.0, -0.5, 2.0], [0.0, -4.0, 1.0]])
    >>> codes
    array([[ 2.,  0.,  1.], [ 0., -3.,  0.]])
    >>> coder.inverse_transform(codes).shape
    (2, 3)
    """

    def __init__(
        self, dictionary: Any, penalty: Any, *, steps: int | None = None, step: Any = None, tol: float | None = None
    ) -> None:
        self.dictionary = dictionary
        self.penalty = penalty
        self.steps = steps
        self.step = step
        self.tol = tol

    @property
    def components_(self) -> Any:
        """The dictionary as an array of floats, (n_components, n_features)."""
        D = self.dictionary
        if is_torch(D):
            D = (D.float() if D.dtype == torch.bfloat16 else D).detach().cpu().numpy()  # NumPy has no bfloat16
        if isinstance(D, np.ma.MaskedArray):
            as_array("dictionary", D)
        return check_array(D, dtype=FLOATS, order="C", input_name="dictionary")

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check that rows X (n, n_features), dictionary, penalty and rule fit; nothing is learned."""
        X = self._rows(X)
        self._codes(X[:0])
        return self

    def transform(self, X: Any) -> Any:
        """The codes (n, n_components) of rows X (n, n_features)."""
        return self._codes(self._rows(X, reset=False))

    def inverse_transform(self, X: Any) -> Any:
        """The rows z D that codes X (n, n_components) stand for."""
        z, D = check_array(X, dtype=FLOATS), self.components_
        if z.shape[1] != len(D):
            msg = f"codes have {z.shape[1]} columns, but this dictionary has {len(D)} atoms"
            raise Error(msg)
        return z @ D.astype(z.dtype)

    @torch.no_grad()
    def _codes(self, X: Any) -> Any:
        x, D = torch.tensor(X), torch.tensor(self.components_)
        if self.steps is not None:
            if self.tol is not None:
                msg = f"tol={self.tol!r} is for solve, and steps={self.steps!r} for ista: give one of them"
                raise Error(msg)
            rule = Lipschitz() if self.step is None else self.step
            return ista(x, D.to(x.dtype), self.penalty, self.steps, rule).codes.numpy()
        if self.step is not None:
            msg = f"step={self.step!r} is for ista: give steps, or no step, since solve has its own"
            raise Error(msg)
        tol = 1e-6 if self.tol is None else self.tol
        found = solve(x.double(), D.double(), self.penalty, tol)
        left = int((~found.converged).sum())
        if left:
            msg = f"{left} of {len(x)} rows have no certificate for tol={tol:g}: their codes are approximate"
            warnings.warn(msg, ConvergenceWarning, stacklevel=5)  # where transform is called
        return found.codes.numpy().astype(X.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


class SparseAutoencoder(_Transformer):
    """A sparse autoencoder as a scikit-learn transformer: `fit` trains an `SAE`, `transform` encodes.

        z = encode(x),   xhat = z components_ + intercept_                               (prop-one-step-is-an-sae)

    n_components: the number of latents, d_sae.
    penalty: R, which decides what SAE it is: `KSparse(32)` is AbsTopK, `KSparse(32, nonneg=True)` TopK.
    steps: the number of encoder steps, as `SAE` takes it.
    step: the rule of those after the first, by default `Lipschitz()`.
    train_steps: steps of Adam, which `train` calls steps.
    batch_size: rows a step of Adam.
    lr: the rate of Adam, by default as `train` chooses it.
    l0: a number of non-zeros a row to reach, by adjusting lam of `sae_` where R has one.
    random_state: of the first atoms and of the order of the rows; the same number gives the same weights on the same
    machine and number of threads.  torch's own generator is left alone.

    Fitted, it has `sae_`, the `SAE` itself, in the dtype of the rows; `components_`, its atoms W_dec (n_components,
    n_features), and `intercept_`, its b_dec (n_features,), as views of it; and `metrics_`, what `train` returned.  With
    `BatchKSparse`, `sae_` is the SAE with the threshold that training found, so that rows are encoded one by one.
    Codes have the dtype of the rows that are encoded.  Scale rows in the pipeline: the SAE does not.

    Raises `Error` where `SAE` and `train` do, and for `BatchKSparse` with steps > 1, which has no such threshold.

    >>> import proxsae as px
    >>> x = px.data.planted(n=256, d_in=16, d_sae=32, k=3).x
    >>> model = SparseAutoencoder(32, px.KSparse(3), train_steps=20, batch_size=64, random_state=0).fit(x)
    >>> model.transform(x).shape, model.components_.shape, int((model.transform(x) != 0).sum(axis=1).max())
    ((256, 32), (32, 16), 3)
    """

    def __init__(
        self,
        n_components: int,
        penalty: Any,
        *,
        steps: int = 1,
        step: Any = None,
        train_steps: int = 1000,
        batch_size: int = 512,
        lr: float | None = None,
        l0: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.penalty = penalty
        self.steps = steps
        self.step = step
        self.train_steps = train_steps
        self.batch_size = batch_size
        self.lr = lr
        self.l0 = l0
        self.random_state = random_state

    @property
    def components_(self) -> Any:
        """The atoms W_dec, (n_components, n_features)."""
        return self.sae_.W_dec.detach().cpu().numpy()

    @property
    def intercept_(self) -> Any:
        """The bias b_dec of reconstructions, (n_features,)."""
        return self.sae_.b_dec.detach().cpu().numpy()

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on rows X (n, n_features), n >= 2, from new weights."""
        X = self._rows(X, ensure_min_samples=2)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            sae = SAE(X.shape[1], self.n_components, self.penalty, self.steps, self.step)
        if not self.penalty.rowwise and sae.steps > 1:
            msg = f"{self.penalty!r} with steps={sae.steps} leaves no threshold to encode single rows by: use steps=1"
            raise Error(msg)
        sae = sae.to(torch.tensor(X[:0]).dtype)
        self.metrics_ = train(sae, X, self.train_steps, self.batch_size, self.lr, seed, self.l0, progress=False)
        self.sae_ = sae if self.penalty.rowwise else sae.thresholded()
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        """The codes (n, n_components) of rows X (n, n_features)."""
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        return self.sae_.encode(X).cpu().numpy().astype(X.dtype)

    @torch.no_grad()
    def inverse_transform(self, X: Any) -> Any:
        """The reconstructions (n, n_features) of codes X (n, n_components)."""
        check_is_fitted(self)
        z = check_array(X, dtype=FLOATS)
        return self.sae_.decode(z).cpu().numpy().astype(z.dtype)
