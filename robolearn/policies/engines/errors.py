"""What can go wrong when a policy is compiled."""

from __future__ import annotations

from robolearn_data.schema import UserError


class EngineError(UserError):
    """An engine is unknown, not installed, or does not compute what the checkpoint's network does."""
