"""FLARE's record of a job that sites refused, as the demo tells it."""

from pathlib import Path

from cordon.demo.job_record import grouped, refusals, why
from cordon.flare import poc

SITES = ("hospital-a", "hospital-b", "hospital-c")
FEDERATION = poc.Poc(Path("/w"), Path("/h"), "p", "server", SITES, 8002)
META = {
    "status": "FINISHED:FAILED_TO_RUN",
    "job_deploy_detail": [
        "server: OK",
        "hospital-a: NVFLARE_ERROR: hospital-a refuses job 'x': epsilon_over_policy: 9 of 4: too much",
        "hospital-c: NVFLARE_ERROR: hospital-c refuses job 'x': epsilon_over_policy: 9 of 4: too much",
        "hospital-b: OK",
        "num_ok_sites 1 < required_min_sites 3",
        "stranger: NVFLARE_ERROR: hello",
    ],
    "schedule_history": ["12:00: no resource", "12:01: scheduled"],
}


def test_refusals_in_the_sites_own_words():
    reason = "epsilon_over_policy: 9 of 4: too much"
    assert refusals(FEDERATION, "x", META) == {"hospital-a": reason, "hospital-c": reason}
    assert refusals(FEDERATION, "x", {}) == {}


def test_each_reason_is_said_once():
    assert grouped({"b": "r", "a": "r", "c": "s"}) == [("a, b", "r"), ("c", "s")]
    said = why(FEDERATION, "x", META)
    assert said.count("too much") == 1 and "hospital-a, hospital-c: epsilon" in said
    assert said.startswith("FLARE says FINISHED:FAILED_TO_RUN") and said.endswith("12:01: scheduled")
