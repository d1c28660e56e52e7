"""Joulegate: what does one run of an LLM workflow cost, in joules?

with joulegate.run("search") as r:
    ...                      # openai, httpx and LangChain calls in here belong to the run
print(r.joules)
"""

from joulegate.figures import EnergyUnavailable, Report, RequestEnergy
from joulegate.placeholders import escape, output_of
from joulegate.run import Run, run, step

__all__ = ["EnergyUnavailable", "Report", "RequestEnergy", "Run", "escape", "output_of", "run", "step"]
