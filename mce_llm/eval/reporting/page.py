"""The report's HTML: one file with its styles, its script, its pictures and all answers in it, and nothing from outside.

Texts of models and data are escaped by the template, or stand in JSON that is no markup; the page's security policy
allows no network and no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mce_llm.eval.reporting.browsing import browser_data, embedded_json
from mce_llm.eval.reporting.collect import Source
from mce_llm.eval.reporting.context import section_context, training_context
from mce_llm.eval.reporting.drawing import COLOURS, COLOURS_ON_DARK, Chart
from mce_llm.eval.reporting.likelihood_context import likelihood_context
from mce_llm.eval.reporting.likelihood_sections import LikelihoodSection
from mce_llm.eval.reporting.looks import printable
from mce_llm.eval.reporting.sections import AnySection, Section, trainings
from mce_llm.eval.results import PACKAGES
from mce_llm.running.installation import installed_versions

GENERATOR = "mce-llm report"
"""What a page says of itself in its head, so that another report may take its place."""
_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("elements.js", "differences.js", "browse.js")


@dataclass(frozen=True)
class Page:
    """A finished report.

    Attributes:
        html: The page.
        charts: Its pictures, for the files beside it.
    """

    html: str
    charts: tuple[Chart, ...]


def make_page(
    sources: Sequence[Source],
    sections: Sequence[Section],
    likelihoods: Sequence[LikelihoodSection] = (),
    *,
    command: str,
    written: datetime,
) -> Page:
    """Make the page.

    Args:
        sources: The runs.
        sections: What `arrange` made of their answers.
        likelihoods: What `arrange_likelihoods` made of their likelihoods.
        command: What was typed to make this report.
        written: When.

    Returns:
        The page and its pictures.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told = [section_context(section) for section in sections]
    of_likelihoods = [likelihood_context(section) for section in likelihoods]
    everything: list[AnySection] = [*sections, *likelihoods]
    training = training_context(trainings(sources, everything))
    charts: list[Chart] = [chart for section in [*told, *of_likelihoods] for chart in section["charts"]]
    charts += [chart for chart, _ in training["curves"]] + training["last_spectra"] + training["spectra"]
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = environment.get_template("style.css").render(
        colours=list(COLOURS), light=_variables(COLOURS), dark=_variables(COLOURS_ON_DARK)
    )
    html = environment.get_template("page.html.j2").render(
        generator=GENERATOR,
        title=_title(sections, likelihoods),
        policy=_policy(script),
        style=Markup(style),
        script=Markup(script),
        answers=Markup(embedded_json(browser_data(sections))),
        drawn=lambda chart: Markup(chart.svg),
        sections=told,
        likelihoods=of_likelihoods,
        training=training,
        pictures=[f"{chart.name}.png" for chart in charts],
        origins=[_origin(section) for section in everything],
        command=printable(command),
        written=f"{written:%Y-%m-%d %H:%M} {written.tzname()}",
        versions=installed_versions(PACKAGES),
    )
    # Names of folders may hold bytes that are no UTF-8.
    return Page(html.encode("utf-8", "backslashreplace").decode("utf-8"), tuple(charts))


def _title(sections: Sequence[Section], likelihoods: Sequence[LikelihoodSection]) -> str:
    everything: list[Section | LikelihoodSection] = [*sections, *likelihoods]
    if not everything:
        return "Training report"
    data = " and ".join(dict.fromkeys(printable(section.data) for section in everything))
    if not all(section.comparison is not None for section in everything):
        return f"{data}: evaluations"
    letters = [section.sides[1] for section in sections]
    letters += [
        arm.letter for section in likelihoods if section.comparison for arm in section.comparison.arms
    ]
    others = list(dict.fromkeys(letters))
    return f"{data}: A against {' and '.join([', '.join(others[:-1]), others[-1]] if others[1:] else others)}"


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _policy(script: str) -> str:
    """No network at all, and no script but the one whose digest this is."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _origin(section: AnySection) -> dict[str, Any]:
    """The folder of each run, and what its answers depend on."""
    rows = []
    for member in section.members:
        config, hashes = member.run.config, member.run.config["hashes"]
        settings = {**config["settings"], "dtype": config["dtype"]}
        versions = config.get("versions", {})
        rows.append(
            {
                "look": member.look,
                "path": printable(str(member.run.path)),
                "hashes": {name: hashes[name] for name in sorted(hashes)},
                "settings": printable(", ".join(f"{name} {value}" for name, value in settings.items())),
                "versions": printable(", ".join(f"{name} {value}" for name, value in versions.items())),
            }
        )
    return {"title": printable(section.title), "rows": rows}
