"""Plain CSV: one row per patient, one column per feature; units are the mapping's.

``mapping.patient`` names the key column, or is ``#row`` for tables without one (public reference sets): the row's
number is the key then.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Literal

from cordon.data.contract import Mapping
from cordon.data.records import Options, Record, wide_row
from cordon.data.source import Source
from cordon.errors import MappingError, SourceError

ROW_NUMBER = "#row"


class CsvOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``delimiter`` of the file."""

    delimiter: Literal[",", ";", "\t", "|"] = ","


def scan(source: Source, mapping: Mapping, options: CsvOptions) -> Iterator[Record]:
    """The records of a CSV file, row by row."""
    member = source.single()
    wanted = [mapping.label.source, *(field.source for field in mapping.features.values())]
    if mapping.patient != ROW_NUMBER:
        wanted.append(mapping.patient)
    for number, row in rows(source, member, wanted, options.delimiter):
        pointer = f"{member}:{number}"
        if row is None:
            yield Record("patient", pointer, "", fault="unreadable")
            continue
        if mapping.patient == ROW_NUMBER:
            row[ROW_NUMBER] = f"{number:09d}"
        yield Record("patient", pointer, row[mapping.patient].strip())
        yield from wide_row(pointer, row, mapping)


def rows(
    source: Source, member: str, wanted: list[str], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(line number, wanted columns of the row) of a CSV member with a header; None for a row of another width.

    Raises:
        SourceError: not UTF-8, no header, a doubled column name, broken quoting, a field over 128 KiB.
        MappingError: a wanted column is not there.
    """
    with source.open(member) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header) or not header:
                raise SourceError(f"{member}: no header line, or a column name twice")
            if missing := sorted(set(wanted) - set(header)):
                raise MappingError(f"{member} has no column {', '.join(missing)}")
            places = {name: header.index(name) for name in wanted}
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield reader.line_num, None
                else:
                    yield reader.line_num, {name: cells[at] for name, at in places.items()}
        except UnicodeDecodeError:
            raise SourceError(f"{member}: not UTF-8 text") from None  # the cause would carry the bytes
        except csv.Error as error:
            raise SourceError(f"{member}:{reader.line_num}: {error}") from error
