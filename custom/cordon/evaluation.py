"""How good is a model on data that may be looked at: the study's public or consented evaluation set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


def auc_and_accuracy(module: torch.nn.Module, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[float, float]:
    """(area under the ROC curve, accuracy at probability 0.5), both in 0..1.

    Args:
        module: network with one logit per row.
        x: (n, k) float32, scaled by the feature contract.
        y: (n,) float32 in {0, 1}; both classes must occur.
    """
    module.eval()
    with torch.no_grad():
        logits = module(torch.from_numpy(np.ascontiguousarray(x))).numpy().reshape(-1)
    return float(roc_auc_score(y, logits)), float(np.mean((logits > 0) == (y > 0.5)))
