"""Every exception that Cordon raises on purpose.

::

    CordonError                    exit code
    |-- ConfigError                3   a file or an argument does not fit its schema
    |-- DataError                  1   patient data cannot be used as the contract asks
    |   |-- SourceError                the source cannot be opened or read
    |   |   `-- VaultError               an encrypted vault does not open, was changed, or is not the version wanted
    |   |-- MappingError               the mapping does not cover the contract, or is not confirmed
    |   `-- RowsRejected               more rows rejected than the contract allows
    |-- SignatureError             1   a signature, a signer or a digest is wrong
    |-- AttestError                1   evidence does not show what the policy asks; lists every failed check
    |-- SealError                  1   sealed bytes do not open: another key, another use, or changed
    |-- Refused                    4   the key broker releases nothing; carries a stable reason code
    |-- BrokerUnavailable          2   the key broker did not answer, so nothing is known of the key
    |-- PrivacyError               4   the differential privacy budget or its mechanism forbids the step
    |-- PolicyRefused              4   the site's policy or the study contract forbids what a job asks
    |-- ProtocolAbort              1   secure aggregation ends for this party; carries a stable reason code
    |-- UpdateRejected             1   one update breaks a public rule; carries a stable reason code
    `-- PortInUse                  3   a port that POC needs is taken

A command maps an exception to the exit code in the table (``CordonError.exit_code``); 2 is kept for *not checked*,
70 for anything that is not a CordonError, 130 for an interrupt, 141 for a reader that went away before the end.
Messages say what was wanted, what came and where; they never hold a patient's value or a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CordonError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(CordonError):
    """A file or argument does not fit its schema."""

    exit_code = 3


class DataError(CordonError):
    """Patient data cannot be used as the contract asks.

    ``code`` is stable and free of patient data: it may leave the site in a signed refusal; the message may not.
    """

    code = "data_error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class SourceError(DataError):
    """The source cannot be opened or read."""

    code = "data_source"


class VaultError(SourceError):
    """An encrypted vault does not open, was changed, or is not the version wanted.

    ``reason`` is stable (``cordon.data.vault``); ``code`` is what may leave the site and says no more than "vault".
    """

    code = "data_vault"

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class MappingError(DataError):
    """The mapping does not cover the contract or is not confirmed by the steward."""

    code = "data_mapping"


class RowsRejected(DataError):
    """More rows were rejected than the contract allows."""

    code = "data_rows_rejected"


class SignatureError(CordonError):
    """A signature, a signer or a digest is wrong."""


class AttestError(CordonError):
    """Evidence does not show what the policy asks.

    Args:
        failures: (code, detail) of every failed check, in the order they were made.
    """

    def __init__(self, failures: list[tuple[str, str]]) -> None:
        self.failures = failures
        super().__init__("; ".join(f"{code}: {detail}" for code, detail in failures))


class SealError(CordonError):
    """Sealed bytes do not open."""


class Refused(CordonError):
    """The key broker releases nothing.

    Args:
        code: stable reason, one of ``cordon.broker.gate.REASONS``.
        detail: what was wanted and what came; never a key and nothing about a patient.
        receipt: the broker's signed receipt of this decision, where one was made.
    """

    exit_code = 4

    def __init__(self, code: str, detail: str, receipt: Mapping[str, Any] | None = None) -> None:
        self.code = code
        self.detail = detail
        self.receipt = receipt
        super().__init__(f"{code}: {detail}")


class BrokerUnavailable(CordonError):
    """The key broker did not answer, or not as itself."""

    exit_code = 2


class PrivacyError(CordonError):
    """The differential privacy budget or its mechanism forbids the step."""

    exit_code = 4


class PolicyRefused(CordonError):
    """The site's policy or the study contract forbids what a job asks.

    Args:
        reasons: (code, detail) of everything that does not fit, all together.
    """

    exit_code = 4

    def __init__(self, reasons: list[tuple[str, str]]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(f"{code}: {detail}" for code, detail in reasons))


class ProtocolAbort(CordonError):
    """A cohort's secure aggregation ends for whoever raises this: it says nothing more and opens nothing.

    Args:
        code: stable reason, one of ``cordon.secagg.wire.ABORT_REASONS``.
        detail: what was wanted and what came; names of sites, never a key, a share or a value.
        blame: the site that a signed message proves at fault, '' where nobody can be blamed.
    """

    def __init__(self, code: str, detail: str, blame: str = "") -> None:
        self.code = code
        self.detail = detail
        self.blame = blame
        super().__init__(f"{code}: {detail}")


class UpdateRejected(CordonError):
    """One update breaks a public rule.

    Args:
        code: stable reason, one of ``cordon.messages.REJECT_REASONS``.
        detail: public facts only (norms and bounds, shapes, versions).
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}")


class PortInUse(CordonError):
    """A port that the POC federation needs is taken."""

    exit_code = 3
