"""How much memory a training run needs, worked out before it starts: pure arithmetic on sizes.

Nothing here knows of recipes; `mce_llm.commands.recipe_shapes` translates one into these shapes.
"""

from mce_llm.planning.engines import ENGINES, Engine, Phase, Term
from mce_llm.planning.inspection import shape_of
from mce_llm.planning.outcome import TIGHT, EnginePlan, MemoryPlan, Remedy, Verdict
from mce_llm.planning.plan import plan_memory
from mce_llm.planning.shapes import (
    GIB,
    DeepSpeedSizes,
    LayerShape,
    LinearShape,
    LossShape,
    ModelShape,
    NormShape,
    ParameterGroup,
    PlanningError,
    TrainingShape,
    UnplannedError,
    with_lora,
)

__all__ = [
    "ENGINES",
    "GIB",
    "TIGHT",
    "DeepSpeedSizes",
    "Engine",
    "EnginePlan",
    "LayerShape",
    "LinearShape",
    "LossShape",
    "MemoryPlan",
    "ModelShape",
    "NormShape",
    "ParameterGroup",
    "Phase",
    "PlanningError",
    "Remedy",
    "Term",
    "TrainingShape",
    "UnplannedError",
    "Verdict",
    "plan_memory",
    "shape_of",
    "with_lora",
]
