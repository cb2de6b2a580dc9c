"""AMD SEV-SNP attestation reports: parse, verify up to AMD's root, compare with a policy (README.md)."""

from cordon.attest.snp.abi import Report
from cordon.attest.snp.policy import SnpPolicy
from cordon.attest.snp.verify import product_of, verify

__all__ = ["Report", "SnpPolicy", "product_of", "verify"]
