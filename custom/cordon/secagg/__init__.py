"""Secure aggregation for a coordinator that nobody has to trust: the sum of a cohort opens, and nothing else."""
