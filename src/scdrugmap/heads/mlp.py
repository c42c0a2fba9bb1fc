"""The classification head: a small perceptron on embeddings, as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from scdrugmap._device import pick_device

if TYPE_CHECKING:
    from scdrugmap.heads.training import HeadResult, TrainOptions

ClassWeight = Literal["balanced"] | dict[Any, float] | None


class MLPHead(ClassifierMixin, BaseEstimator):
    """Two hidden ReLU layers on an embedding, trained by binary cross-entropy with AdamW.

    The defaults are those of the published protocol: 512 and 512 hidden units, learning rate 1e-4, 10 epochs,
    batches of 128, no scaling of the inputs. There is one logit, for the second class; of the labels
    ``resistant`` and ``sensitive`` that is *sensitive*.

    Parameters
    ----------
    hidden
        Units of each hidden layer.
    epochs
        Passes over the training cells; with ``early_stopping`` the most there can be.
    lr, weight_decay
        Of AdamW (betas 0.9 and 0.999).
    batch_size
        Cells per step.
    standardize
        Scale every feature to zero mean and unit variance, measured on the training cells of ``fit`` alone; or
        (``"overall"``) to zero mean, and all by one number to a mean variance of one, so that what varies little in the
        embedding still weighs little.
    class_weight
        ``"balanced"``, a mapping from label to weight, or ``None``.
    early_stopping
        Hold out ``validation_fraction`` of the training cells, whole groups where ``groups`` are given, stop
        after ``patience`` epochs without a lower validation loss, and keep the best parameters. ``"settled"``: train on
        all cells until ``patience`` epochs have hardly lowered the training loss.
    validation_fraction
        Share of the training cells (of the groups) that is held out for early stopping.
    patience
        Epochs to wait for an improvement.
    random_state
        Seed of the starting parameters, the shuffling and the inner split.
    device
        ``"cpu"``, ``"cuda"`` ...; ``None`` takes ``scdrugmap.settings.device``.
    precision
        ``"float32"``, or ``"bfloat16"`` for matrix products in bfloat16 with parameters, sums and AdamW in float32:
        about twice as fast where the processor has such instructions, at results that differ in the third digit.

    Attributes
    ----------
    classes_
        The two labels, sorted; the probability of the second is what the network computes.
    coefs_, intercepts_
        Weights (inputs x outputs) and biases of each layer.
    mean_, scale_
        What ``standardize`` measured, else ``None``.
    loss_curve_, validation_curve_
        Mean loss of every epoch on the training and on the held-out cells.
    n_iter_
        Epochs whose parameters are kept.

    Notes
    -----
    Arithmetic is float32, or float64 where ``X`` is float64 (sooner exact than fast). The loss of a batch is its weighted mean, and cells of
    weight zero are left out before anything is drawn, so they have no influence whatever. Ten epochs are few: how far
    they get depends on the scale of the features, and a warning says where the loss was still falling at the end.
    ``make_head("mlp")`` standardises and trains to convergence.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap.response import MLPHead
    >>> X = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    >>> y = np.where(X[:, 0] > 0, "sensitive", "resistant")
    >>> MLPHead(epochs=2, random_state=0).fit(X, y).predict_proba(X).shape
    (60, 2)
    """

    def __init__(
        self,
        hidden: Sequence[int] = (512, 512),
        *,
        epochs: int = 10,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        batch_size: int = 128,
        standardize: bool | Literal["overall"] = False,
        class_weight: ClassWeight = None,
        early_stopping: bool | Literal["settled"] = False,
        validation_fraction: float = 0.1,
        patience: int = 3,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.standardize = standardize
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state
        self.device = device
        self.precision = precision

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train on the rows of ``X``.

        Parameters
        ----------
        X
            Cells x features, finite.
        y
            Labels of two classes.
        sample_weight
            Weight of each cell; ``None`` gives each the weight one.
        groups
            Group (sample, patient ...) of each cell, which the inner validation split keeps whole.

        Returns
        -------
        The fitted head.

        Raises
        ------
        InputError
            If ``y`` has another number of classes than two.
        """
        from scdrugmap.heads.tasks import fit_arrays

        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64), ensure_min_samples=2)
        check_classification_targets(y)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        rows = np.arange(len(y)) if weight is None else np.flatnonzero(weight > 0)
        weights = None if weight is None else [weight]
        options = self._train_options()
        result = fit_arrays(X, y, [rows], options, [self.random_state], weights=weights, groups=groups)[0]
        self._keep(result, y[rows])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logit of the second class for every row.

        Parameters
        ----------
        X
            Cells x features.

        Returns
        -------
        Array (cells,) in the precision of the parameters.
        """
        import torch

        from scdrugmap.heads.training import forward

        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=(np.float32, np.float64))
        device = pick_device(self.device)
        weights = [torch.as_tensor(w, device=device) for w in self.coefs_]
        biases = [torch.as_tensor(b, device=device) for b in self.intercepts_]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(X), 4096):
                x = X[start : start + 4096].astype(self.coefs_[0].dtype, copy=False)
                if self.mean_ is not None:
                    x = (x - self.mean_) / self.scale_
                parts.append(forward(torch.as_tensor(x, device=device), weights, biases).cpu().numpy())
        return np.concatenate(parts)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of both classes for every row.

        Parameters
        ----------
        X
            Cells x features.

        Returns
        -------
        Array (cells, 2) in the order of ``classes_``.
        """
        from scipy.special import expit

        positive = expit(self.decision_function(X))
        return np.stack([1 - positive, positive], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Likelier label of every row.

        Parameters
        ----------
        X
            Cells x features.

        Returns
        -------
        Array (cells,) of labels.
        """
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int)]

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that prediction needs, as plain arrays.

        Returns
        -------
        ``layers.<i>.weight``, ``layers.<i>.bias`` and, where features are standardised, ``scaler.mean`` and
        ``scaler.scale``. The labels are not among them: they need not be numbers.
        """
        check_is_fitted(self)
        state: dict[str, np.ndarray] = {}
        for i, (w, b) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            state[f"layers.{i}.weight"], state[f"layers.{i}.bias"] = w, b
        if self.mean_ is not None and self.scale_ is not None:
            state["scaler.mean"], state["scaler.scale"] = self.mean_, self.scale_
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], classes: Sequence[Any], **params: Any) -> MLPHead:
        """Build a fitted head from the arrays of :meth:`get_state`.

        Parameters
        ----------
        state
            The arrays.
        classes
            The two labels, in the order of ``classes_``.
        params
            Parameters of the estimator, for ``get_params``.

        Returns
        -------
        A head that predicts exactly as the one that was stored.
        """
        n_layers = sum(name.endswith(".weight") for name in state)
        head = cls(**params)
        head._store(
            [np.asarray(state[f"layers.{i}.weight"]) for i in range(n_layers)],
            [np.asarray(state[f"layers.{i}.bias"]) for i in range(n_layers)],
            np.asarray(classes),
            state.get("scaler.mean"),
            state.get("scaler.scale"),
        )
        head.n_features_in_ = head.coefs_[0].shape[0]
        return head

    def _train_options(self) -> TrainOptions:
        """Parameters that all heads of one computation share: all but ``random_state``."""
        from scdrugmap.heads.training import TrainOptions

        params = {k: v for k, v in self.get_params(deep=False).items() if k != "random_state"}
        return TrainOptions(**{**params, "hidden": tuple(self.hidden)})

    def _keep(self, result: HeadResult, labels: np.ndarray) -> None:
        """Set the fitted attributes from a training on cells with these labels."""
        self._store(result.weights, result.biases, np.unique(labels), result.mean, result.scale)
        self.loss_curve_, self.validation_curve_ = result.loss_curve, result.val_curve
        self.n_iter_, self.n_features_in_ = result.best_epoch, result.weights[0].shape[0]

    def _store(
        self,
        weights: list[np.ndarray],
        biases: list[np.ndarray],
        classes: np.ndarray,
        mean: np.ndarray | None,
        scale: np.ndarray | None,
    ) -> None:
        """Set the fitted attributes that prediction reads."""
        self.coefs_, self.intercepts_ = weights, biases
        self.classes_, self.mean_, self.scale_ = classes, mean, scale

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
