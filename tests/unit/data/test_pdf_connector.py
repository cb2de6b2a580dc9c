"""PDF reports: strict grammar, bounded size, no half reports."""

import pytest
from reportlab.pdfgen.canvas import Canvas

from cordon.data import pdf
from cordon.data.load import load_patients, read_source
from cordon.data.pdf import PdfOptions, scan
from cordon.data.source import FolderSource
from cordon.errors import SourceError

NAME = "HX-00000.pdf"


def report(path, lines, pages=1):
    page = Canvas(str(path), invariant=1)
    for _ in range(pages):
        for number, line in enumerate(lines):
            page.drawString(60, 800 - 16 * number, line)
        page.showPage()
    page.save()


@pytest.mark.parametrize("keep", [0, 10, 500, -7])
def test_a_truncated_report_is_rejected_whole(contract, mappings, hospital, keep):
    source = hospital("pdf")
    (source / NAME).write_bytes((source / NAME).read_bytes()[:keep])
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"unreadable": 1}
    assert ledger.patients.rows_out == 29
    assert ledger.examples[0].pointer == NAME


def test_damage_in_the_middle_does_not_give_a_patient(contract, mappings, hospital):
    source = hospital("pdf")
    data = (source / NAME).read_bytes()
    (source / NAME).write_bytes(data[:300] + b"\x00" * (len(data) - 400) + data[-100:])
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rows_out == 29
    assert ledger.patients.rejected.total() == 1


def test_oversize_is_rejected_before_parsing(contract, mappings, hospital, monkeypatch):
    source = hospital("pdf")
    (source / NAME).write_bytes(b"%PDF-1.4" + b" " * pdf.MAX_BYTES + b"%%EOF")
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"too_large": 1}


def test_too_many_pages(contract, mappings, hospital):
    source = hospital("pdf")
    report(source / NAME, ["Patient ID: HX-00000"], pages=pdf.MAX_PAGES + 1)
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"too_large": 1}


def test_two_patients_in_one_report_are_nobody(contract, mappings, hospital):
    source = hospital("pdf")
    report(source / NAME, ["Patient ID: HX-00000", "Patient ID: HX-00001", "Mean radius: 10 µm"])
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"no_patient": 1}
    assert ledger.rejected == {"no_patient": 1}


def test_a_patient_in_two_reports(contract, mappings, hospital):
    source = hospital("pdf")
    (source / "copy.pdf").write_bytes((source / NAME).read_bytes())
    ledger = load_patients(contract, mappings["pdf"], "pdf", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"duplicate": 1}
    assert ledger.rejected == {"duplicate": 31}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Mean radius: 10", "unit_unknown"),
        ("Mean radius: 10 mg", "unit_not_convertible"),
        ("Mean radius: 10 wibble", "unit_unknown"),
        ("Mean radius: about 10 µm", "unparsable_number"),
        ("Mean radius: 10,5 µm", "unparsable_number"),
        ("Mean radius: 1O µm", "unparsable_number"),
        ("Mean radios: 10 µm", "unknown_code"),
        ("Diagnosis: uncertain", "unknown_code"),
    ],
)
def test_lines_outside_the_grammar(contract, mappings, tmp_path, line, reason):
    report(tmp_path / NAME, ["Patient ID: HX-00000", line])
    ledger = read_source(contract, mappings["pdf"], "pdf", FolderSource(tmp_path)).conservation
    assert ledger.rejected == {reason: 1}
    assert ledger.examples[0].pointer == f"{NAME}:p1:2"


def test_free_text_is_set_aside_and_counted(mappings, tmp_path):
    report(
        tmp_path / NAME, ["Patient ID: HX-00000", "Mean radius was hard to see", "Note: see slide 4", "Remark: none"]
    )
    records = list(scan(FolderSource(tmp_path), mappings["pdf"], PdfOptions()))
    assert [record.filtered for record in records] == ["", "text_line", "text_line", "text_line", "text_line"]


def test_a_label_must_start_the_line(contract, mappings, tmp_path):
    """A value in the middle of a sentence must not be taken for a measurement."""
    report(tmp_path / NAME, ["Patient ID: HX-00000", "Not the Mean radius: 10 µm", "see Diagnosis: malignant"])
    ledger = read_source(contract, mappings["pdf"], "pdf", FolderSource(tmp_path)).conservation
    assert ledger.rejected == {"unknown_code": 1}
    assert ledger.patients.rejected == {"missing_feature": 1}


def test_no_reports(contract, mappings, tmp_path):
    with pytest.raises(SourceError, match=r"no \.pdf file"):
        load_patients(contract, mappings["pdf"], "pdf", FolderSource(tmp_path))
    with pytest.raises(SourceError, match="cannot be read"):
        load_patients(contract, mappings["pdf"], "pdf", FolderSource(tmp_path / "missing"))
