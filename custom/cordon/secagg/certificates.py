"""Which key speaks for a site: the study contract's mTLS key certifies it, so that nobody mints a site."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cordon import signing
from cordon.errors import ConfigError, ProtocolAbort, SignatureError
from cordon.secagg import wire
from cordon.secagg.wire import Certificate
from cordon.signing import PrivateKey, PublicKey


def certify(mtls_key: PrivateKey, study: str, job: str, site: str, signing_key: PublicKey) -> dict[str, Any]:
    """The ``Certificate`` envelope of ``signing_key``, made by ``site`` with its mTLS key."""
    body = Certificate(v=1, study=study, job=job, site=site, signing_key=signing.encode_spki(signing_key))
    return wire.sign(mtls_key, body)


def signer(
    envelope: Any, study: str, job: str, mtls_keys: Mapping[str, PublicKey], now: datetime, code: str
) -> tuple[str, PublicKey]:
    """The site that ``envelope`` (a ``Ticket`` or ``Commit``, not verified yet) names, and its certified signing key.

    Args:
        mtls_keys: of the study contract's roster.
        code: of the ProtocolAbort that is raised where the certificate is not one of this site, study and job.
    """
    try:
        body = signing.unverified_body(envelope)
        site, certificate = body.get("site"), body.get("certificate")
        if not isinstance(site, str) or site not in mtls_keys:
            said = repr(site[:64]) if isinstance(site, str) else f"a {type(site).__name__}"
            raise ProtocolAbort(code, f"site {said} is not in the study's roster")
        found = wire.verify(certificate, Certificate, mtls_keys[site], now)
        if (found.study, found.job, found.site) != (study, job, site):
            raise ProtocolAbort(code, f"the certificate of {site} is of another study, job or site")
        return site, signing.decode_spki(found.signing_key)
    except SignatureError as error:
        raise ProtocolAbort("bad_message", str(error)) from error
    except ConfigError as error:
        raise ProtocolAbort(code, f"the certified key of {site} is none: {error}") from error
    except ProtocolAbort as error:
        if error.code == code:
            raise
        raise ProtocolAbort(code, f"the certificate of {site}: {error.detail}") from error
