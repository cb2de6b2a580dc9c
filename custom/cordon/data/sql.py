"""A SQL database with tables of its own making; SQLite is the embedded default, opened read-only.

A database in a vault is decrypted into memory and read there; no part of it, and no temporary table, touches a disk.

The mapping holds names only, never SQL: each is looked up in the schema that the database itself reports, and
SQLAlchemy quotes it. A name that the schema does not have is a MappingError.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from cordon.data.contract import Mapping
from cordon.data.records import Options, Record, as_key, wide_row
from cordon.data.source import FolderSource, Source
from cordon.errors import MappingError, SourceError

MAX_DATABASE = 64 * 1024**3  # bytes
MAX_IN_MEMORY = 1024**3  # bytes of a database that is read from a vault: twice that while it is taken over
_CHUNK = 1000


class SqlOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``table``: table or view with a row per patient and a column per feature. ``label_table``: the one with a row per
    patient that holds the label (default: the same). ``status`` and ``filter_status``: a column of ``table`` and the
    values that set a row aside (as rule ``status:<value>``). ``patient`` is the key column in both tables."""

    table: str
    label_table: str = ""
    status: str = ""
    filter_status: tuple[str, ...] = ()


def scan(source: Source, mapping: Mapping, options: SqlOptions) -> Iterator[Record]:
    """The records of the database, in the order of the patient key; patients are the rows of the label's table."""
    engine = _engine(source)
    try:
        features = [field.source for field in mapping.features.values()]
        status = [options.status] if options.status else []
        wide = _select(engine, options.table, [mapping.patient, *features, *status])
        label_table = options.label_table or options.table
        labels = _select(engine, label_table, [mapping.patient, mapping.label.source])
        with engine.connect() as connection:
            for number, row in _rows(connection, labels):
                pointer = f"{label_table}:{number}"
                yield Record("patient", pointer, as_key(row[mapping.patient]))
                value = as_key(row[mapping.label.source])
                yield Record("label", pointer, as_key(row[mapping.patient]), mapping.label.source, value)
            for number, row in _rows(connection, wide):
                aside = as_key(row[options.status]) if options.status else ""
                rule = f"status:{aside}" if aside in options.filter_status else ""
                for record in wide_row(f"{options.table}:{number}", row, mapping, label=False):
                    yield msgspec.structs.replace(record, filtered=rule) if rule else record
    except SQLAlchemyError as error:
        # The driver's own text may quote a cell, so only its kind is kept.
        raise SourceError(f"{source.name}: {type(error).__name__} while reading the database") from None
    finally:
        engine.dispose()


def _engine(source: Source) -> sqlalchemy.Engine:
    member = source.single()

    def connect() -> sqlite3.Connection:
        connection = _connect(source, member)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")  # a large ORDER BY would spill patients into a file
        return connection

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=sqlalchemy.pool.StaticPool)


def _connect(source: Source, member: str) -> sqlite3.Connection:
    if isinstance(source, FolderSource):
        source.open(member, MAX_DATABASE).close()
        # Read-only twice: the file is opened so (a live database's journal is honoured), and the session says so.
        return sqlite3.connect(f"{source.path(member).absolute().as_uri()}?mode=ro", uri=True)
    with source.open(member, MAX_IN_MEMORY) as file:
        data = bytearray(file.seek(0, os.SEEK_END))
        file.seek(0)
        file.readinto(data)
    # A database in memory has no write-ahead log; without one, a file of that mode reads as one of the older mode does
    # (bytes 18 and 19, https://www.sqlite.org/fileformat2.html section 1.3.3).
    if data[18:20] == b"\x02\x02":
        data[18:20] = b"\x01\x01"
    connection = sqlite3.connect(":memory:")
    if data:  # no bytes are an empty database, as an empty file is
        connection.deserialize(data)
    return connection


def _select(engine: sqlalchemy.Engine, table: str, columns: list[str]) -> sqlalchemy.Select[Any]:
    """SELECT of ``columns`` in the order of the first; each name must be one that the schema itself reports."""
    schema = sqlalchemy.inspect(engine)
    if table not in {*schema.get_table_names(), *schema.get_view_names()}:
        raise MappingError(f"the database has no table or view {table!r}")
    present = {column["name"] for column in schema.get_columns(table)}
    if missing := sorted(set(columns) - present):
        raise MappingError(f"table {table} has no column {', '.join(map(repr, missing))}")
    # Columns without a type: values come as the database holds them, not as SQLAlchemy would convert them.
    chosen: list[sqlalchemy.ColumnClause[Any]] = [sqlalchemy.column(name) for name in dict.fromkeys(columns)]
    return sqlalchemy.select(*chosen).select_from(sqlalchemy.table(table, *chosen)).order_by(chosen[0])


def _rows(connection: sqlalchemy.Connection, query: sqlalchemy.Select[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    names = [column.name for column in query.selected_columns]
    with connection.execution_options(yield_per=_CHUNK).execute(query) as result:
        for number, row in enumerate(result, start=1):
            yield number, dict(zip(names, row, strict=True))
