"""Two readings of the same bytes: dcap-qvl and our own evaluation must agree, on refusals and on the TCB level."""

from itertools import product

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest import roots
from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import genuine, pck, quote
from cordon.attest.dcap.evaluation import evaluate
from cordon.errors import ConfigError
from fakes.intel_pki import CPU_SVN, NOW, IntelPki, components, sgx_report, td_report

PKI = IntelPki()
REAL = {
    "tdx": ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-07-01"),
    "sgx": ("dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json", "2025-07-01"),
    "tdx outdated": ("dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx_quote_outdated_collateral.json", "2026-02-18"),
    "spr e4": ("go-tdx-guest/tdx_prod_quote_SPR_E4.dat", "derived/collateral_spr_e4.assembled.json", "2023-07-01"),
}
# What is ours alone, and what dcap-qvl says as a whole, are left out of the comparison.
NOT_COMPARED = {"quote_tail", "tee_type", "quote_verification"}


def both(data, collateral, root, now=NOW):
    """(dcap-qvl's status or None, ours or None)."""
    parsed, read = quote.parse(data), collaterals.parse(collateral)
    theirs = collaterals.judge(data[: len(data) - len(parsed.tail)], read, now, root.public_bytes(Encoding.DER))
    found = genuine.establish(parsed, data, parsed.tee_type, read, now, root)
    try:
        chain = pck.read_chain(parsed.certification_data)
        platform = pck.read_platform(chain.pck)
    except ValueError:
        return theirs.verified, None
    _, ours = evaluate(parsed, read, chain, platform, now, root)
    refused = any(each.result == "fail" for each in found.checks if each.code not in NOT_COMPARED)
    return theirs.verified, None if refused else ours


STATUSES = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate")
STATUSES += ("OutOfDateConfigurationNeeded", "Revoked")
OTHERS = ("UpToDate", "OutOfDate", "Revoked")  # all that Intel says of QEs and modules


@pytest.mark.parametrize(("platform", "module", "qe"), list(product(STATUSES, OTHERS, OTHERS)))
def test_both_converge_statuses_alike(platform, module, qe):
    info = PKI.tcb_info(status=platform, advisories=("INTEL-SA-00002",))
    info["tdxModuleIdentities"][0]["tcbLevels"][0] |= {"tcbStatus": module, "advisoryIDs": ["INTEL-SA-00001"]}
    theirs, ours = both(PKI.quote(), PKI.collateral(tcb_info=info, qe_identity=PKI.qe_identity(status=qe)), PKI.root)
    assert (theirs is None) is (ours is None) is ("Revoked" in (platform, module, qe))
    if theirs is not None:
        assert theirs.tcb.status == ours.tcb.status
        assert sorted(theirs.tcb.advisory_ids) == ours.tcb.advisory_ids
        assert theirs.evaluation_number == ours.evaluation_number
        assert theirs.platform == ours.platform
        assert theirs.qe == ours.qe


TEE_SVNS = ((6, 1, 3), (6, 1, 1), (4, 1, 9), (3, 1, 9), (5, 0, 2), (4, 0, 2), (9, 3, 9))


@pytest.mark.parametrize("tee", list(map(bytes, TEE_SVNS)), ids=bytes.hex)
@pytest.mark.parametrize("wanted", [bytes([5, 0, 2]), bytes([6, 1, 3]), bytes([0, 0, 4])], ids=bytes.hex)
def test_both_match_tee_tcb_svn_alike(tee, wanted):
    info = PKI.tcb_info()
    info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"] = components(wanted + bytes(13))
    data = PKI.quote(td_report(tee_tcb_svn=tee + bytes(13)))
    theirs, ours = both(data, PKI.collateral(tcb_info=info), PKI.root)
    assert (theirs is None) is (ours is None)


@pytest.mark.parametrize("tdx", [True, False])
def test_both_choose_the_same_level(tdx):
    info = PKI.tcb_info(tdx)
    (best,) = info["tcbLevels"]
    svns = [CPU_SVN, bytes([4]) + CPU_SVN[1:], bytes([6]) + CPU_SVN[1:], CPU_SVN[:7] + bytes([9]) + bytes(8), bytes(16)]
    info["tcbLevels"] = [
        {**best, "tcb": {**best["tcb"], "sgxtcbcomponents": components(svn), "pcesvn": pce}, "tcbStatus": status}
        for svn, pce, status in zip(svns, (14, 13, 13, 12, 5), STATUSES, strict=False)
    ]
    data = PKI.quote(td_report()) if tdx else PKI.quote(sgx_report(), version=3)
    theirs, ours = both(data, PKI.collateral(tdx, tcb_info=info), PKI.root)
    assert theirs.tcb.status == ours.tcb.status == "SWHardeningNeeded"


@pytest.mark.parametrize("case", REAL)
def test_both_agree_on_real_quotes_and_on_changed_ones(vectors, case):
    name, collateral_name, day = REAL[case]
    folder = vectors / "attestation" / "tdx"
    data, collateral = (folder / name).read_bytes(), (folder / collateral_name).read_bytes()
    root, now = roots.load("intel_sgx_root"), NOW.fromisoformat(f"{day}T12:00:00+00:00")
    theirs, ours = both(data, collateral, root, now)
    assert (theirs is None) is (ours is None) is (case not in ("tdx", "sgx"))
    if theirs is not None:
        assert (theirs.tcb.status, sorted(theirs.tcb.advisory_ids)) == (ours.tcb.status, ours.tcb.advisory_ids)
        assert theirs.platform == ours.platform
    end = len(data) - len(quote.parse(data).tail)
    for place in range(0, end, 61):
        changed = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        try:
            assert both(changed, collateral, root, now)[1] is None, place
        except ConfigError:
            continue
    split = 0
    for place in range(0, len(collateral), 61):
        changed = collateral[:place] + bytes([collateral[place] ^ 1]) + collateral[place + 1 :]
        try:
            theirs, ours = both(data, changed, root, now)
        except ConfigError:
            continue
        assert ours is None or theirs is not None, place
        split += theirs is not None and ours is None
    assert not split
