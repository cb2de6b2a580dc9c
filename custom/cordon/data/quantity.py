"""Numbers and units: strict number grammar, exact decimal conversion between UCUM units.

Values are converted in decimal arithmetic, so ``0.01799 mm`` and ``17.99 um`` become the same float. The unit library
takes about half a second to load; it is loaded only when two units differ.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from cordon.errors import DataError

_POINT = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_COMMA = re.compile(r"[+-]?[0-9]{1,40}(?:,[0-9]{1,40})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_EQUIVALENTS = re.compile(r"(?<![A-Za-z\[])[a-zA-Z]{0,2}eq(?![A-Za-z\]])")
_ANNOTATION = re.compile(r"\{[!-z|~]*\}", re.ASCII)  # {score}, {cells}: unity, UCUM section 6
_BRACKETED = re.compile(r"\[[^\]]+\]")
# Units that depend on an assay: isArbitrary="yes" in ucum-essence.xml. UCUM section 24: they convert to nothing else.
# fmt: off
ARBITRARY = frozenset((
    "[hp_X]", "[hp_C]", "[hp_M]", "[hp_Q]", "[kp_X]", "[kp_C]", "[kp_M]", "[kp_Q]", "[iU]", "[IU]", "[arb'U]",
    "[USP'U]", "[GPL'U]", "[MPL'U]", "[APL'U]", "[beth'U]", "[anti'Xa'U]", "[todd'U]", "[dye'U]", "[smgy'U]",
    "[bdsk'U]", "[ka'U]", "[knk'U]", "[mclg'U]", "[tb'U]", "[CCID_50]", "[TCID_50]", "[EID_50]", "[PFU]", "[FFU]",
    "[CFU]", "[IR]", "[BAU]", "[AU]", "[Amb'a'1'U]", "[PNU]", "[Lf]", "[D'ag'U]", "[FEU]", "[ELU]", "[EU]",
))
# fmt: on
MAX_UNIT = 64  # characters; UCUM expressions of real data are far shorter


class Rejected(DataError):
    """One value cannot be used; ``code`` is one of ``records.REASONS``, the message holds no value."""

    def __init__(self, code: str) -> None:
        super().__init__(code, code)


class Affine(NamedTuple):
    """target = value * slope + offset, exactly."""

    slope: Decimal
    offset: Decimal


def parse_number(raw: str | float | None, decimal_comma: bool) -> Decimal:
    """``raw`` as an exact finite number.

    Text must match the grammar as a whole: no thousands separators, no ``<5``, and in a decimal-comma column no point
    (``1.234`` there may mean 1234).

    Raises:
        Rejected: missing_feature (empty), not_finite, unparsable_number.
    """
    if raw is None:
        raise Rejected("missing_feature")
    if isinstance(raw, int | float):
        text = repr(float(raw))
    else:
        text = raw.strip()
        if not text:
            raise Rejected("missing_feature")
        if _NOT_FINITE.fullmatch(text):
            raise Rejected("not_finite")
        if not (_COMMA if decimal_comma else _POINT).fullmatch(text):
            raise Rejected("unparsable_number")
        text = text.replace(",", ".")
    if not math.isfinite(float(text)):
        raise Rejected("not_finite")
    return Decimal(text)


def convert(value: Decimal, unit: str, target: str) -> float:
    """``value`` from UCUM ``unit`` to UCUM ``target``.

    Raises:
        Rejected: unit_unknown, unit_not_convertible, not_finite.
    """
    if unit == target:
        return float(value)
    slope, offset = conversion(unit, target)
    result = float(value * slope + offset)
    if not math.isfinite(result):
        raise Rejected("not_finite")
    return result


def conversion(unit: str, target: str) -> Affine:
    """How to get from UCUM ``unit`` to UCUM ``target``; Rejected if there is no linear way."""
    if unit == target:
        return Affine(Decimal(1), Decimal(0))
    found = _conversion(unit, target)
    if isinstance(found, str):
        raise Rejected(found)
    return found


@cache
def _registry() -> Any:
    from ucumvert import PintUcumRegistry  # loading takes half a second and most sources need no conversion

    return PintUcumRegistry(non_int_type=Decimal)


@cache
def _parsed(code: str) -> tuple[Decimal, Any] | None:
    """(multiplier, pint units) of a UCUM code; None if it is none."""
    from lark.exceptions import LarkError
    from pint.errors import PintError

    if not 0 < len(code) <= MAX_UNIT or not code.isascii():
        return None
    try:
        quantity = _registry().from_ucum("1" if _ANNOTATION.fullmatch(code) else code)
        return Decimal(str(quantity.magnitude)), quantity.units
    except (LarkError, PintError, ArithmeticError, ValueError, TypeError, AttributeError, KeyError):
        return None


@cache
def _conversion(unit: str, target: str) -> Affine | str:
    from pint.errors import PintError

    left, right = _parsed(unit), _parsed(target)
    if left is None or right is None:
        return "unit_unknown"
    # An equivalent is mol / valence; the library takes the valence for 1, which is wrong for calcium or magnesium.
    if bool(_EQUIVALENTS.search(unit)) != bool(_EQUIVALENTS.search(target)):
        return "unit_not_convertible"
    # Arbitrary units: the library takes all of them for the number 1.
    if ARBITRARY.intersection(_BRACKETED.findall(unit)) != ARBITRARY.intersection(_BRACKETED.findall(target)):
        return "unit_not_convertible"
    try:
        zero, one, two = (
            Decimal(_registry().Quantity(left[0] * n, left[1]).to(right[1]).magnitude) / right[0] for n in range(3)
        )
    except (PintError, ArithmeticError, ValueError, TypeError):
        return "unit_not_convertible"
    if abs((two - one) - (one - zero)) > Decimal("1e-18") * (abs(two) + 1):
        return "unit_not_convertible"  # logarithmic scales: pH, dB
    return Affine(one - zero, zero)
