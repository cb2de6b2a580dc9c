"""SQL: names come from the schema or not at all, the database is never written, odd cells are counted."""

import hashlib
import sqlite3
from contextlib import closing

import msgspec
import pytest
import sqlalchemy

from cordon.data.load import load_patients
from cordon.data.source import FolderSource
from cordon.data.sql import SqlOptions, _engine, scan
from cordon.errors import MappingError, SourceError

INJECTIONS = (
    "messwerte; DROP TABLE messwerte; --",
    'messwerte" UNION SELECT * FROM patienten --',
    "messwerte WHERE 1=1",
    "(SELECT 1)",
    "sqlite_master",
    "main.messwerte",
    "",
)


def run(path, statement, *arguments):
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(statement, arguments).fetchall()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (where, name)
        for where in ("table", "label_table", "status", "patient", "feature", "label")
        for name in INJECTIONS
        if name or where not in ("label_table", "status")  # there empty means not given
    ],
)
def test_a_name_outside_the_schema_is_refused(contract, mappings, hospital, name, where):
    source, mapping = hospital("sql"), mappings["sql"]
    before = hashlib.sha256(source.read_bytes()).digest()
    if where in ("table", "label_table", "status"):
        mapping = msgspec.structs.replace(mapping, options={**mapping.options, where: name})
    elif where == "patient":
        mapping = msgspec.structs.replace(mapping, patient=name)
    elif where == "label":
        mapping = msgspec.structs.replace(mapping, label=msgspec.structs.replace(mapping.label, source=name))
    else:
        field = msgspec.structs.replace(mapping.features["mean_texture"], source=name)
        mapping = msgspec.structs.replace(mapping, features={**mapping.features, "mean_texture": field})
    with pytest.raises(MappingError):
        load_patients(contract, mapping, "sql", FolderSource(source))
    assert hashlib.sha256(source.read_bytes()).digest() == before


def test_a_column_with_a_hostile_name_that_exists_is_just_a_column(contract, mappings, hospital):
    source, mapping = hospital("sql"), mappings["sql"]
    name = 'x"; DROP TABLE patienten; --'
    run(source, f'ALTER TABLE messwerte RENAME COLUMN textur_mittel TO "{name.replace(chr(34), chr(34) * 2)}"')
    field = msgspec.structs.replace(mapping.features["mean_texture"], source=name)
    mapping = msgspec.structs.replace(mapping, features={**mapping.features, "mean_texture": field})
    assert len(load_patients(contract, mapping, "sql", FolderSource(source)).patients.ids) == 30
    assert run(source, "SELECT count(*) FROM patienten") == [(30,)]


@pytest.mark.parametrize("first", ["SELECT 1", "PRAGMA query_only = OFF"])
def test_the_connection_cannot_write(hospital, first):
    engine = _engine(FolderSource(hospital("sql")))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(first))
        with pytest.raises(sqlalchemy.exc.OperationalError, match="readonly"):
            connection.execute(sqlalchemy.text("DELETE FROM messwerte"))
    engine.dispose()


def test_reading_leaves_no_trace_beside_the_file(contract, mappings, hospital):
    source = hospital("sql")
    before = hashlib.sha256(source.read_bytes()).digest()
    load_patients(contract, mappings["sql"], "sql", FolderSource(source))
    assert [path.name for path in source.parent.iterdir()] == ["sql"]
    assert hashlib.sha256(source.read_bytes()).digest() == before


def test_a_path_with_uri_characters_stays_a_path(contract, mappings, hospital):
    source = hospital("sql")
    odd = source.with_name("a?mode=rwc&b#c%41.db")
    source.rename(odd)
    assert len(load_patients(contract, mappings["sql"], "sql", FolderSource(odd)).patients.ids) == 30


def test_a_view_serves_as_table(contract, mappings, hospital):
    source = hospital("sql")
    run(source, "CREATE VIEW gueltige AS SELECT * FROM messwerte WHERE status = 'gueltig'")
    options = {**mappings["sql"].options, "table": "gueltige"}
    loaded = load_patients(
        contract, msgspec.structs.replace(mappings["sql"], options=options), "sql", FolderSource(source)
    )
    assert loaded.conservation.rows.filtered == {}
    assert len(loaded.patients.ids) == 30


def test_one_table_for_everything(contract, mappings, hospital):
    source = hospital("sql")
    run(
        source,
        "CREATE VIEW alles AS SELECT m.*, p.befund FROM messwerte m JOIN patienten p USING (patient_nr) "
        "WHERE status = 'gueltig'",
    )
    options = {key: value for key, value in mappings["sql"].options.items() if key != "label_table"} | {
        "table": "alles"
    }
    loaded = load_patients(
        contract, msgspec.structs.replace(mappings["sql"], options=options), "sql", FolderSource(source)
    )
    assert len(loaded.patients.ids) == 30


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "UPDATE messwerte SET textur_mittel = NULL WHERE lfd_nr = (SELECT min(lfd_nr) FROM messwerte "
            "WHERE status = 'gueltig')",
            "missing_feature",
        ),
        (
            "UPDATE messwerte SET textur_mittel = x'00ff' WHERE lfd_nr = (SELECT min(lfd_nr) FROM messwerte "
            "WHERE status = 'gueltig')",
            "unparsable_number",
        ),
        (
            "UPDATE messwerte SET radius_mittel = '1.234' WHERE lfd_nr = (SELECT min(lfd_nr) FROM messwerte "
            "WHERE status = 'gueltig')",
            "unparsable_number",
        ),
    ],
)
def test_odd_cells(contract, mappings, hospital, statement, reason):
    source = hospital("sql")
    run(source, statement)
    ledger = load_patients(contract, mappings["sql"], "sql", FolderSource(source)).conservation
    assert ledger.rejected == {reason: 1, "patient_rejected": 30}
    assert ledger.patients.rejected == {"missing_feature": 1}


def test_no_database(contract, mappings, tmp_path):
    with pytest.raises(SourceError, match="there is none"):
        load_patients(contract, mappings["sql"], "sql", FolderSource(tmp_path / "none.db"))
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(SourceError, match="while reading the database"):
        load_patients(contract, mappings["sql"], "sql", FolderSource(tmp_path / "text.db"))
    assert not (tmp_path / "none.db").exists()


def test_scan_is_lazy_and_closes(mappings, hospital):
    options = SqlOptions(table="messwerte", label_table="patienten")
    records = scan(FolderSource(hospital("sql")), mappings["sql"], options)
    assert next(records).kind == "patient"
    records.close()
