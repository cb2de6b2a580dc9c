"""The vendors' certificates that every chain must end in, embedded, each with its source and SHA-256 (of the DER).

AMD publishes a product's ASK or ASVK and ARK at ``https://kdsintf.amd.com/{vcek,vlek}/v1/{Product}/cert_chain``
(AMD 57230), Intel its root at ``https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.pem``,
NVIDIA its roots with its verifiers (``https://github.com/NVIDIA/attestation-sdk``, ``https://github.com/NVIDIA/nvtrust``).
The bytes were taken from those and from google/go-sev-guest ``verify/trust`` and google/go-tdx-guest
``verify/trusted_root.pem``, and agree. A changed file is refused.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.errors import ConfigError

SHA256 = {
    "amd_milan_ark": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "amd_milan_ask": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
    "amd_milan_asvk": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
    "amd_genoa_ark": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "amd_genoa_ask": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
    "amd_genoa_asvk": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
    "amd_turin_ark": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    "amd_turin_ask": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
    "amd_turin_asvk": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
    "intel_sgx_root": "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
    "nvidia_device_root": "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
    "nvidia_rim_root": "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
}


@functools.cache
def load(name: str) -> x509.Certificate:
    """The embedded certificate ``name``, a key of ``SHA256``.

    Raises:
        ConfigError: the file in the package is not the one whose digest stands here.
    """
    data = resources.files(__name__).joinpath(f"{name}.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(data)
    if hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest() != SHA256[name]:
        raise ConfigError(f"{name}.pem in the package is not the vendor's certificate: the installation was changed")
    return certificate
