"""The demo's data: who gets which patient, and baselines that pool."""

import numpy as np
import pytest

from cordon.demo import baselines, wdbc


@pytest.mark.parametrize("seed", range(10))
def test_split_is_a_partition_uneven_and_usable(seed: int) -> None:
    split = wdbc.split(seed)
    tables = [split.reference, *split.sites.values()]
    patients = np.concatenate([table.patients for table in tables])
    assert sorted(patients) == list(range(569))
    assert tuple(split.sites) == wdbc.SITES
    assert len(split.reference) == pytest.approx(0.3 * 569, abs=1)
    assert min(len(table) for table in split.sites.values()) >= 40
    assert all(8 <= table.y.sum() <= len(table) - 8 for table in split.sites.values())
    assert len({len(table) for table in split.sites.values()}) >= 3
    malignant = [table.y.mean() for table in split.sites.values()]
    assert max(malignant) - min(malignant) > 0.1


def test_split_repeats_and_depends_on_the_seed() -> None:
    one, again, other = wdbc.split(3), wdbc.split(3), wdbc.split(4)
    for site in wdbc.SITES:
        assert np.array_equal(one.sites[site].x, again.sites[site].x)
        assert not np.array_equal(one.sites[site].patients, other.sites[site].patients)


def test_labels_and_features_are_those_of_the_source() -> None:
    table = wdbc.load()
    assert table.x.shape == (569, 30)
    assert table.y.sum() == 212  # malignant, as the data set's description says
    ids = wdbc.feature_ids()
    assert ids[0] == "mean_radius"
    assert "radius_error" in ids
    assert "worst_concave_points" in ids
    radius = table.x[:, ids.index("mean_radius")]
    assert radius[table.y == 1].mean() > radius[table.y == 0].mean()


def test_pooled_baseline_uses_the_honest_four_only() -> None:
    split = wdbc.split(0)
    before = baselines.auc_pooled(split)
    split.sites["hospital-e"].y[:] = 1 - split.sites["hospital-e"].y
    assert baselines.auc_pooled(split) == before > 0.97
    alone = baselines.auc_alone(split)
    assert set(alone) == set(wdbc.HONEST)
    assert all(0.9 < auc <= 1 for auc in alone.values())
