"""What a person can mend of a campaign: one line each. Imports nothing, so that a command line can know them early."""


class CampaignError(ValueError):
    """A campaign that cannot be: the line says what would be right."""


class ReportError(RuntimeError):
    """A report that cannot be made: the line says what is missing."""
