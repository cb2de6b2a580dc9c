"""Evidence of Azure confidential VMs: HCL report, runtime claims, vTPM quote (README.md)."""

from cordon.attest.azure.appraise import hardware_report, verify
from cordon.attest.azure.evidence import Evidence, read_evidence, read_tpm_quote
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.azure.tpm import TpmQuote

__all__ = ["AzurePolicy", "Evidence", "TpmQuote", "hardware_report", "read_evidence", "read_tpm_quote", "verify"]
