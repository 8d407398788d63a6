"""The part of a study that is run now: some of its arms, training seeds and evaluations, the others another time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mce_llm.running.messages import nearest_hint
from mce_llm.studies.definition import Study
from mce_llm.studies.planning import Run, planned_runs
from mce_llm.studies.results import RunResult


@dataclass(frozen=True)
class Part:
    """What of a study is asked for; of a kind that names nothing, everything.

    Attributes:
        arms: Names of arms.
        seeds: Training seeds.
        evaluations: Names of evaluations.
    """

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    evaluations: tuple[str, ...] = ()

    def problems(self, study: Study) -> list[str]:
        """What of it the study does not have, in words.

        Args:
            study: The study.
        """
        arms = [arm.name for arm in study.arms]
        evaluations = [evaluation.name for evaluation in study.evaluations]
        return [
            *(
                f"--only: there is no arm {name!r}{nearest_hint(name, arms)}"
                for name in self.arms
                if name not in arms
            ),
            *(
                f"--seeds: {seed} is none of the study's seeds"
                for seed in self.seeds
                if seed not in study.seeds
            ),
            *(
                f"--evaluate: there is no evaluation {name!r}{nearest_hint(name, evaluations)}"
                for name in self.evaluations
                if name not in evaluations
            ),
        ]

    def runs(self, study: Study, results: Mapping[tuple[str, int], RunResult]) -> list[Run]:
        """The runs of this part, in the study's order.

        Args:
            study: The study.
            results: What is in its file.
        """
        return [
            run
            for run in planned_runs(study, results, self.evaluations)
            if (not self.arms or run.arm.name in self.arms) and (not self.seeds or run.seed in self.seeds)
        ]


EVERYTHING = Part()
