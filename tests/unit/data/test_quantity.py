"""Number grammar and unit conversion."""

import re
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.data.quantity import ARBITRARY, Rejected, conversion, convert, parse_number


@pytest.mark.parametrize(
    ("raw", "comma", "value"),
    [
        ("17.99", False, "17.99"),
        (" 17.99 ", False, "17.99"),
        ("17,99", True, "17.99"),
        ("17", True, "17"),
        ("-1e-3", False, "-0.001"),
        ("+0", False, "0"),
        (17.99, True, "17.99"),
        (3, False, "3"),
    ],
)
def test_numbers(raw, comma, value):
    assert parse_number(raw, comma) == Decimal(value)


@pytest.mark.parametrize(
    ("raw", "comma", "reason"),
    [
        ("17,99", False, "unparsable_number"),
        ("1.234", True, "unparsable_number"),  # may mean 1234
        ("1.234,5", True, "unparsable_number"),
        ("1,234.5", False, "unparsable_number"),
        ("1 234", False, "unparsable_number"),
        ("0x10", False, "unparsable_number"),
        ("1_000", False, "unparsable_number"),
        ("١٢", False, "unparsable_number"),  # digits of another script
        ("<5", False, "unparsable_number"),
        ("5.", False, "unparsable_number"),
        (".5", False, "unparsable_number"),
        ("1e9999999", False, "unparsable_number"),
        ("9" * 10_000, False, "unparsable_number"),
        ("12\n34", False, "unparsable_number"),
        ("", False, "missing_feature"),
        ("  ", False, "missing_feature"),
        (None, False, "missing_feature"),
        ("NaN", False, "not_finite"),
        ("-inf", True, "not_finite"),
        ("Infinity", False, "not_finite"),
        ("1e400", False, "not_finite"),
        (float("nan"), False, "not_finite"),
        (float("-inf"), True, "not_finite"),
    ],
)
def test_what_is_no_number(raw, comma, reason):
    with pytest.raises(Rejected) as caught:
        parse_number(raw, comma)
    assert caught.value.code == reason


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back(value):
    assert float(parse_number(value, False)) == value
    assert float(parse_number(repr(value), False)) == value


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_rejected(text):
    try:
        assert parse_number(text, False).is_finite()
    except Rejected as error:
        assert error.code in {"unparsable_number", "not_finite", "missing_feature"}
        assert len(text) < 3 or text not in str(error)


@pytest.mark.parametrize(
    ("value", "unit", "target", "result"),
    [
        ("0.01799", "mm", "um", 17.99),
        ("0.001001", "mm2", "um2", 1001.0),
        ("12.5", "%", "1", 0.125),
        ("120", "mg/dL", "g/L", 1.2),
        ("37", "Cel", "K", 310.15),
        ("1", "[in_i]", "cm", 2.54),
        ("5", "10*3/uL", "10*9/L", 5.0),
        ("2", "mm", "mm", 2.0),
        ("3", "{score}", "1", 3.0),
        ("4", "m[iU]/mL", "[iU]/L", 4.0),
    ],
)
def test_conversion_is_exact(value, unit, target, result):
    assert convert(Decimal(value), unit, target) == result


@pytest.mark.parametrize(
    ("unit", "target", "reason"),
    [
        ("um", "um2", "unit_not_convertible"),
        ("kg", "um", "unit_not_convertible"),
        ("mg/dL", "mmol/L", "unit_not_convertible"),  # needs a molar mass
        ("meq/L", "mmol/L", "unit_not_convertible"),  # needs a valence
        ("[iU]/L", "/L", "unit_not_convertible"),  # what an international unit is depends on the substance
        ("[iU]", "[arb'U]", "unit_not_convertible"),
        ("dB", "1", "unit_not_convertible"),  # logarithmic
        ("[pH]", "mol/L", "unit_unknown"),  # logarithmic: the library has no linear form of it
        ("furlong", "um", "unit_unknown"),
        ("µm", "um", "unit_unknown"),  # not UCUM: the mapping's `units` must say so
        ("um", "", "unit_unknown"),
        ("m" * 5000, "um", "unit_unknown"),
        ("((((((", "um", "unit_unknown"),
    ],
)
def test_units_without_a_way(unit, target, reason):
    with pytest.raises(Rejected) as caught:
        convert(Decimal(1), unit, target)
    assert caught.value.code == reason


@given(st.text(max_size=12))
def test_any_text_as_unit_is_answered(text):
    try:
        assert conversion(text, "um").slope
    except Rejected as error:
        assert error.code in {"unit_unknown", "unit_not_convertible"}


@given(st.decimals(0, 10_000, places=9))
def test_there_and_back(value):
    assert convert(Decimal(str(convert(value, "mm", "um"))), "um", "mm") == pytest.approx(float(value), rel=1e-15)


def test_arbitrary_units_are_those_of_the_standard(vectors):
    essence = (vectors / "clinical" / "ucum" / "ucum-essence.xml").read_text()
    marked = re.findall(r'<unit (?=[^>]*isArbitrary="yes")[^>]*?\bCode="([^"]+)"', essence)
    assert set(marked) == ARBITRARY


def test_same_units_do_not_load_the_unit_library():
    code = (
        "import sys; from decimal import Decimal; from cordon.data import load, quantity; "
        "quantity.convert(Decimal(1), 'um', 'um'); "
        "assert not {'pint', 'ucumvert', 'sqlalchemy', 'pypdfium2', 'torch', 'nvflare'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
