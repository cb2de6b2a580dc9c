"""Two hospitals with a key broker, and made-up vendors."""

from fakes.hardware_federation import vendors
from fakes.key_broker import hospitals

__all__ = ["hospitals", "vendors"]
