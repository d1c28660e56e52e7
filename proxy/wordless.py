"""What may be logged of an exception."""

import traceback


def wordless(error: BaseException) -> str:
    """Where and of which kind it was; its own words may hold what it stumbled over, a prompt say."""
    return f"Traceback:\n{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}"
