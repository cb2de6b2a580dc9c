"""What the demo keeps when it ends, also where something in the federation broke."""

import pytest

from cordon.demo import driver
from cordon.errors import SignatureError
from cordon.flare import poc


def test_a_broker_whose_receipts_cannot_be_read_costs_no_site_its_log(tmp_path, monkeypatch):
    federation = poc.Poc(tmp_path / "poc", tmp_path / "home", "p", "server", ("hospital-a",), 8002)
    for name in ("server", "hospital-a"):
        federation.kit(name).mkdir(parents=True)
        (federation.kit(name) / "log.txt").write_text(f"said {name}")

    def broken(_federation, _target):
        raise SignatureError("the chain of receipts is broken")

    monkeypatch.setattr(driver.key_releases, "keep", broken)
    with pytest.raises(SignatureError, match="chain of receipts"):
        driver._keep_logs(federation, tmp_path / "logs")
    for name in ("server", "hospital-a"):
        assert (tmp_path / "logs" / name / "log.txt").read_text() == f"said {name}"
