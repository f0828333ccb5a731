"""What the engines of the planned step share, on a CPU and on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bareconv.device import Device
from bareconv.kernels.cache import OnCompile
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import EngineSettings

if TYPE_CHECKING:
    from bareconv.plan.explain import Explanation


class PlannedEngine:
    """The planned step. What it has compiled and laid out lasts as long as it does."""

    name = "plan"

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings) -> None:
        self.model, self.optimizer, self._settings = model, optimizer, settings
        self._plan: Any = None

    def _make_plan(self) -> Any:
        """The device's plan, whose modules are imported here: they need what other engines do without."""
        raise NotImplementedError

    @property
    def plan(self) -> Any:
        """The plan, made when it is first asked for."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    @property
    def device(self) -> Device:
        return self.model.device

    @property
    def compiled(self) -> int:
        return self._plan.compiled if self._plan is not None else 0

    @property
    def compile_seconds(self) -> float:
        return self._plan.compile_seconds if self._plan is not None else 0.0

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        self.plan.prepare(on_compile)

    def kept_bytes(self) -> dict[str, int]:
        return self.plan.kept_bytes()

    def explain(self) -> Explanation:
        """What the plan has chosen."""
        return self.plan.explain()
