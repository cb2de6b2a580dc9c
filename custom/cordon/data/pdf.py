"""Text PDF pathology reports, one per patient, read in memory by a strict line grammar.

::

    <Label>: <number> <unit>        a measurement; Label and spelling of the unit as the mapping gives them
    <Label>: <word ...>             the patient line (``mapping.patient``) and the label's line

A line whose label the mapping does not know is set aside (rule ``text_line``), unless it has the form of a measurement:
that is an ``unknown_code``. There is no OCR: a scanned report has no text and fails as ``no_patient``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pypdfium2

from cordon.data.contract import Mapping
from cordon.data.records import Options, Record
from cordon.data.source import Source
from cordon.errors import SourceError

MAX_BYTES = 4 * 1024**2
MAX_PAGES = 20
MAX_CHARACTERS = 200_000  # per page
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9 ()/_.-]{0,80}): +(\S(?:.{0,200}\S)?)")
_MEASUREMENT = re.compile(r"[+-]?[0-9][0-9.,]{0,40}(?:[eE][+-]?[0-9]{1,3})? +\S{1,20}", re.ASCII)


class PdfOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options beyond the common ones."""


def scan(source: Source, mapping: Mapping, options: PdfOptions) -> Iterator[Record]:
    """The records of a folder of reports, one patient each."""
    reports = [member for member in source.members() if member.lower().endswith(".pdf")]
    if not reports:
        raise SourceError(f"{source.name}: no .pdf file in this folder")
    for member in reports:
        text = _text(source, member)
        if isinstance(text, Record):
            yield text
        else:
            yield from _report(member, text, mapping)


def _text(source: Source, member: str) -> list[tuple[str, str]] | Record:
    """(pointer, line) of every line; or a rejected patient where the file cannot be taken as a report."""
    with source.open(member) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return Record("patient", member, "", fault="too_large")
    # The reader repairs files without an end and would give half a report as if it were whole.
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-1024:]:
        return Record("patient", member, "", fault="unreadable")
    lines: list[tuple[str, str]] = []
    try:
        document = pypdfium2.PdfDocument(data)
        try:
            if len(document) > MAX_PAGES:
                return Record("patient", member, "", fault="too_large")
            for number in range(len(document)):
                page = document[number].get_textpage()
                if page.count_chars() > MAX_CHARACTERS:
                    return Record("patient", member, "", fault="too_large")
                text = page.get_text_range().splitlines()
                lines += [(f"{member}:p{number + 1}:{at}", line.strip()) for at, line in enumerate(text, start=1)]
        finally:
            document.close()
    except pypdfium2.PdfiumError:
        return Record("patient", member, "", fault="unreadable")
    return lines


def _report(member: str, lines: list[tuple[str, str]], mapping: Mapping) -> Iterator[Record]:
    parsed = [(pointer, _LINE.fullmatch(line)) for pointer, line in lines if line]
    named = {found[2] for _, found in parsed if found and found[1] == mapping.patient}
    patient = named.pop() if len(named) == 1 else ""  # two different patients in one report: nobody's
    yield Record("patient", member, patient)
    sources = {field.source for field in mapping.features.values()}
    for pointer, found in parsed:
        if found is None:
            yield Record("feature", pointer, patient, filtered="text_line")
        elif found[1] == mapping.label.source:
            yield Record("label", pointer, patient, found[1], found[2])
        elif found[1] in sources:
            yield _measurement(pointer, patient, found[1], found[2])
        elif _MEASUREMENT.fullmatch(found[2]):
            yield Record("feature", pointer, patient, found[1])
        else:
            yield Record("feature", pointer, patient, filtered="text_line")


def _measurement(pointer: str, patient: str, label: str, rest: str) -> Record:
    words = rest.split()
    if len(words) > 2:
        return Record("feature", pointer, patient, label, fault="unparsable_number")
    return Record("feature", pointer, patient, label, words[0], words[1] if len(words) == 2 else "")
