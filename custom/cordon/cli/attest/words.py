"""What each kind of evidence proves and what it does not, in sentences for whoever has to decide by it."""

from __future__ import annotations

from dataclasses import dataclass

FRESH = "that it is fresh, or about your peer: compare report_data (nonce, keys, site) with what you asked for"
IMAGE = "that the measured image is a good one: compare the measurement with one that somebody you trust computed"
VULNERABLE = "that the running software has no holes, or that nobody reads it through side channels or physical attacks"
SOFTWARE = "software, proves nothing about hardware"


@dataclass(frozen=True)
class Words:
    """``proves`` holds for evidence that was verified; ``never`` holds for all evidence of this kind."""

    title: str
    proves: tuple[str, ...]
    never: tuple[str, ...]


WORDS = {
    "snp": Words(
        "AMD SEV-SNP attestation report",
        (
            "a guest with exactly this measurement, policy and VMPL asked for it on a genuine AMD processor",
            "that processor's firmware is at least at the reported TCB version",
            "the guest chose report_data, and whoever started it chose host_data",
        ),
        (FRESH, IMAGE, "where the machine stands and who owns it", VULNERABLE),
    ),
    "tdx": Words(
        "Intel TDX quote",
        (
            "a trust domain with exactly this MRTD, RTMRs and attributes asked for it on a genuine Intel platform",
            "with collateral: at which TCB status Intel sees that platform",
            "the trust domain chose report_data, and whoever started it chose MRCONFIGID and MROWNER",
        ),
        (FRESH, IMAGE, "what the RTMRs mean, without the event log that leads to them", VULNERABLE),
    ),
    "sgx": Words(
        "Intel SGX quote",
        (
            "an enclave with exactly this MRENCLAVE, signed by MRSIGNER, asked for it on a genuine Intel platform",
            "with collateral: at which TCB status Intel sees that platform",
            "the enclave chose report_data",
        ),
        (FRESH, IMAGE, "anything about what runs around the enclave on that machine", VULNERABLE),
    ),
    "gpu": Words(
        "NVIDIA attestation report",
        (
            "a genuine NVIDIA device with these firmware measurements answered this nonce",
            "with RIM files: its driver and VBIOS are those that NVIDIA released under these versions",
        ),
        (
            "that confidential computing is on and developer tools are off: the report does not state it",
            "to which machine or VM the device belongs: the CPU's evidence has to cover this evidence",
            "that its key was not revoked: only OCSP tells, and that needs the network",
            VULNERABLE,
        ),
    ),
    "azure": Words(
        "Azure confidential VM: vTPM-wrapped hardware report",
        (
            "the paravisor in a genuine confidential VM vouches for the runtime claims and the vTPM's key in them",
            "with a vTPM quote: that vTPM saw these PCR values and answered this nonce",
        ),
        (
            "anything without trust in Microsoft's paravisor: it, not the guest, chose the hardware's report_data",
            FRESH,
            IMAGE,
            VULNERABLE,
        ),
    ),
    "nras": Words(
        "token of NVIDIA's attestation service (NRAS)",
        ("NVIDIA's service looked at a device's evidence and says what it found",),
        (
            "anything of its own: it is the service's word, and worth as much as the key set you check it with",
            "to which machine the device belongs",
            "that confidential computing is on: a token does not state it",
            VULNERABLE,
        ),
    ),
    "maa": Words(
        "token of Microsoft Azure Attestation (MAA)",
        ("Microsoft's service looked at a VM's evidence and says what it found",),
        (
            "anything of its own: it is the service's word, and worth as much as the key set you check it with",
            "that it is about your VM: any customer of Azure gets such tokens; compare nonce, VM id and measurement",
            VULNERABLE,
        ),
    ),
    "software": Words(
        f"report of the software TEE: {SOFTWARE}",
        ("that somebody holds the software TEE's key file of this POC workspace",),
        ("anything about hardware, memory encryption or the software that runs",),
    ),
    "cordon": Words(
        "Cordon's evidence: a statement signed with the prover's mTLS key, with a TEE's report about it",
        ("once appraised by a verifier that issued the nonce: this site's process holds these two keys, in that TEE",),
        (
            "anything by itself: nonce, mTLS key and policy are the verifier's own, and are not in this file",
            VULNERABLE,
        ),
    ),
}
