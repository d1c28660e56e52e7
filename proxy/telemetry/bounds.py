"""How many values a metric label may take: names come from clients, and every new one costs memory for ever."""

from collections.abc import Iterable, Mapping

OTHER = "other"


class LabelBound:
    """Which values of one label stand for themselves; all further ones are counted and become `other`.

    Known values always stand. Beyond them values are taken in the order in which they come, until `limit` are held in
    all. What `admit` returned, it returns again unchanged, so that a name may pass here more than once.
    """

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self.limit = limit
        self.overflow = 0
        self._held = set(known) - {OTHER}

    def know(self, values: Iterable[str]) -> None:
        """Let these stand for themselves from now on."""
        self._held |= set(values) - {OTHER}

    def admit(self, value: str) -> str:
        """The value itself, or `other`."""
        if value in self._held or value == OTHER:
            return value
        if len(self._held) < self.limit:
            self._held.add(value)
            return value
        self.overflow += 1
        return OTHER


class LabelBounds:
    """The bounds of a gateway: workflows, the steps of each workflow, models.

    `known` maps the configured workflows to their configured steps.
    """

    def __init__(
        self,
        workflows: int = 50,
        steps: int = 20,
        models: int = 50,
        known: Mapping[str, Iterable[str]] | None = None,
        known_models: Iterable[str] = (),
    ) -> None:
        self._step_limit = steps
        self._workflow = LabelBound(workflows, known or ())
        self._model = LabelBound(models, known_models)
        self._steps = {workflow: LabelBound(steps, names) for workflow, names in (known or {}).items()}

    def configure(
        self, workflows: int, steps: int, known: Mapping[str, Iterable[str]], known_models: Iterable[str]
    ) -> None:
        """Take other bounds and further known values; what stands for itself by now goes on doing so."""
        self._workflow.limit, self._step_limit = workflows, steps
        self._workflow.know(known)
        self._model.know(known_models)
        for workflow, names in known.items():
            self._steps.setdefault(workflow, LabelBound(steps)).know(names)
        for bound in self._steps.values():
            bound.limit = steps

    def workflow(self, name: str) -> str:
        return self._workflow.admit(name)

    def step(self, workflow: str, name: str) -> str:
        """The step's label within an *admitted* workflow."""
        bound = self._steps.get(workflow)
        if bound is None:
            bound = self._steps[workflow] = LabelBound(self._step_limit)
        return bound.admit(name)

    def model(self, name: str) -> str:
        return self._model.admit(name)

    @property
    def overflow(self) -> dict[str, int]:
        """How often a value had to become `other`, by label."""
        return {
            "workflow": self._workflow.overflow,
            "step": sum(bound.overflow for bound in self._steps.values()),
            "model": self._model.overflow,
        }
