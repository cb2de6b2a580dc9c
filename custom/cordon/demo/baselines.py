"""Non-private models on pooled data: what the federation is compared with, never part of it.

The driver computes them from its own source data; a federation could not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cordon.demo.wdbc import HONEST, Split, Table


def auc(train: Table, reference: Table) -> float:
    """AUC on ``reference`` of a ridge-penalised logistic regression on ``train``, standardised by train's moments."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    model.fit(train.x, train.y)
    return float(roc_auc_score(reference.y, model.decision_function(reference.x)))


def auc_pooled(split: Split, sites: Sequence[str] = HONEST) -> float:
    """As if ``sites`` (the honest hospitals) had put their patients into one table."""
    tables = [split.sites[site] for site in sites]
    pooled = Table(
        np.concatenate([table.patients for table in tables]),
        np.concatenate([table.x for table in tables]),
        np.concatenate([table.y for table in tables]),
    )
    return auc(pooled, split.reference)


def auc_alone(split: Split, sites: Sequence[str] = HONEST) -> dict[str, float]:
    """Each of ``sites`` with its own patients only."""
    return {site: auc(split.sites[site], split.reference) for site in sites}
