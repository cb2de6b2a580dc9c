"""Intel DCAP: quotes of TDX and SGX (README.md). The verifiers are ``cordon.attest.tdx`` and ``cordon.attest.sgx``."""
