"""report.html: whole, self-contained, and safe to open whatever the sites called themselves."""

import subprocess
import sys
from html.parser import HTMLParser

import pytest

from cordon.errors import ConfigError
from cordon.report import html
from cordon.report.html import render
from cordon.report.metrics import metrics
from cordon.report.record import KeyReleases, RunRecord, SiteFacts

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Parses a page, demands balanced tags, and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def page(run):
    return render(run, metrics(run))


def test_self_contained_and_complete(make_run):
    run = make_run(seed=5)
    text = page(run)
    parsed = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1] in ("src", "href", "srcset") or a[1].startswith("on")]
    for load in ("http://", "https://", "url(", "@import", "javascript:"):
        assert load not in text
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in parsed.attributes
    assert len(text) < 200_000
    for site in run.names:
        assert parsed.text.count(site) >= 5
    for said in (
        "proves nothing about hardware", "PUBLIC reference set", "The production default is none", "over_norm_bound",
        "unit is one patient", "δ = 1e-5", "costs about twice as much", "Mode sealed:",
        "What this run does not show",
        "itself, clipped and noised by that hospital", run.job.trust, run.versions[-1].sha256, "nvflare 2.9.0",
    ):  # fmt: skip
        assert said in parsed.text, said
    assert parsed.tags.count("svg") == 8


def test_key_releases_are_told_and_what_software_evidence_is_worth(make_run):
    said = "Software evidence proves nothing about hardware: whoever owns this machine could have had these keys"
    refused = {"evidence_refused": 3}
    soft = Page(page(make_run(key_releases={"hospital-a": KeyReleases(7, 5, refused, ("software",))}))).text
    assert "Which keys were released" in soft and "hospital-a 7 5 software evidence_refused 3" in soft and said in soft
    hard = Page(page(make_run(key_releases={"hospital-a": KeyReleases(1, 1, {}, ("snp",))}))).text
    assert "hospital-a 1 1 snp –" in hard and said not in hard
    assert "Which keys were released" not in Page(page(make_run())).text


def test_same_record_same_bytes(make_run):
    run = make_run()
    assert page(run) == page(run)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><svg onload=x>', "{{ 7*7 }}", "</style><b>", "'&amp;"]
)
def test_hostile_texts_stay_text(make_run, evil):
    names = ["hospital-a", evil, "hospital-c", "hospital-d", "x" + evil]
    keys = {evil: KeyReleases(1, 1, {evil: 1}, (evil,))}
    changes = {
        "key_releases": keys,
        "logs": (evil,),
        "software": {evil: evil},
        "attestation": (evil,),
        "ended": {evil: evil},
    }
    run = make_run(sites=names, hostile=evil, **changes)
    text = page(run)
    parsed, plain = Page(text), Page(page(make_run(key_releases={"x": KeyReleases(1, 1, {"x": 1}, ("x",))})))
    assert parsed.text.count(evil) >= 5
    assert set(parsed.tags) == set(plain.tags) and {a[1] for a in parsed.attributes} == {a[1] for a in plain.attributes}
    assert evil not in text or evil == "{{ 7*7 }}"
    assert "49" not in parsed.text.split(evil)[1][:3]


def test_figures_on_the_page_are_the_metrics(make_run):
    run = make_run()
    result = metrics(run)
    text = Page(render(run, result)).text
    for figure in (f"{result['auc']:.3f}", f"{result['accuracy']:.3f}", "0.994", "2.610", "5.620", "2.900", "72 %"):
        assert figure in text, figure


def test_a_run_that_went_nowhere(make_run, plan):
    run = make_run()
    sites = {site: SiteFacts("honest", "csv") for site in run.names}
    empty = RunRecord(run.events[:1], sites, 0.0, 0)
    text = Page(page(empty)).text
    assert "no version was made" in text and "stopped or failed" in text and "No evidence was appraised" in text


def test_production_without_reference_set_claims_no_figure(make_run):
    run = make_run()
    job = {**{name: getattr(run.job, name) for name in run.job.__struct_fields__}, "profile": "production"}
    job |= {"privacy": "sealed", "evaluation": type(run.job.evaluation)(kind="none")}
    versions = [type(v)(**{**_fields(v), "auc": None, "accuracy": None}) for v in run.versions]
    events = (type(run.job)(**job), *versions, *(e for e in run.events[1:] if e not in run.versions))
    text = Page(page(RunRecord(events, run.sites, 1.0, 0))).text
    for absent in ("PUBLIC", "proof of concept", "unsafe_", "Accuracy"):
        assert absent not in text, absent
    assert "had no reference set" in text


def test_many_sites_stay_small_and_all_appear(make_run):
    names = [f"hospital-{i:03d}" for i in range(200)]
    text = page(make_run(sites=names))
    parsed = Page(text)
    assert len(text) < html.MAX_REPORT and all(name in parsed.text for name in names)
    assert "The first 60 hospitals are drawn" in parsed.text


def test_too_large_a_page_is_refused(make_run, monkeypatch):
    monkeypatch.setattr(html, "MAX_REPORT", 1000)
    with pytest.raises(ConfigError, match="at most 1000"):
        page(make_run())


def test_report_needs_neither_torch_nor_nvflare_nor_matplotlib():
    code = (
        "import cordon.report.html, cordon.report.live, sys; print({'torch', 'nvflare', 'matplotlib'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def _fields(event):
    return {name: getattr(event, name) for name in event.__struct_fields__}
