"""The operators of ai.onnx.ml that map numbers to numbers, for NumPy and JAX alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xrt.kernels.portable import features, linear, trees

NUMERIC: dict[str, Callable[..., Any]] = {
    "Binarizer": features.binarizer,
    "FeatureVectorizer": features.feature_vectorizer,
    "Imputer": features.imputer,
    "LinearRegressor": linear.linear_regressor,
    "Normalizer": features.normalizer,
    "SVMRegressor": linear.svm_regressor,
    "Scaler": features.scaler,
    "TreeEnsemble": trees.tree_ensemble,
    "TreeEnsembleRegressor": trees.tree_regressor,
}
"""Operator -> function of the array module, the inputs and the attributes."""
