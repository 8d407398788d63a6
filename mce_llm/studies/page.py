"""The page of a study: verdict, pictures, tables and notes in one HTML file that works offline, from the results alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from mce_llm.eval.reporting.drawing import COLOURS, COLOURS_ON_DARK, Chart
from mce_llm.running.visible_text import visible
from mce_llm.studies.comparing import StudyComparison
from mce_llm.studies.tables import TextTable


def study_page(
    compared: StudyComparison,
    tables: Sequence[TextTable],
    charts: Sequence[Chart],
    *,
    report: str | None = None,
) -> str:
    """Make the page.

    Args:
        compared: The comparison.
        tables: Those of `tables.study_tables`.
        charts: Those of `pictures.study_charts`.
        report: A link to the report of the runs; None without one.

    Returns:
        The HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    primary = compared.primary
    html = environment.get_template("page.html.j2").render(
        name=compared.study.name,
        extent=compared.extent,
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        report=report,
        verdict=compared.undecided if primary is None else primary.verdict,
        verdicts=[] if primary is None else [arm.verdict for arm in primary.arms],
        charts=charts,
        drawn=lambda chart: Markup(chart.svg),
        tables=tables,
        notes=compared.notes,
        light=_variables(COLOURS),
        dark=_variables(COLOURS_ON_DARK),
    )
    return visible(html)


def _variables(colours: dict[str, str]) -> Markup:
    return Markup(" ".join(f"--{name}: {colour};" for name, colour in colours.items()))
