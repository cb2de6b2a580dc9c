"""Aggregation rules: n updates in, one out."""

from cordon.robust.aggregate import aggregate, check
from cordon.robust.mixing import PRE, PreStep
from cordon.robust.rules import RULES, Outcome, Rule

__all__ = ["PRE", "RULES", "Outcome", "PreStep", "Rule", "aggregate", "check"]
