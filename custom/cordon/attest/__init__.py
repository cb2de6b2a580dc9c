"""Evidence about who runs what: binding, software TEE, policy, appraisal. Specification: README.md."""
