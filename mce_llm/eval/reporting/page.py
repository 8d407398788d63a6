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
from mce_llm.eval.reporting.sections import Section, trainings
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
    sources: Sequence[Source], sections: Sequence[Section], *, command: str, written: datetime
) -> Page:
    """Make the page.

    Args:
        sources: The runs.
        sections: What `arrange` made of them.
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
    training = training_context(trainings(sources, sections))
    charts: list[Chart] = [chart for section in told for chart in section["charts"]]
    charts += [chart for chart, _ in training["curves"]] + training["last_spectra"] + training["spectra"]
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = environment.get_template("style.css").render(
        colours=list(COLOURS), light=_variables(COLOURS), dark=_variables(COLOURS_ON_DARK)
    )
    html = environment.get_template("page.html.j2").render(
        generator=GENERATOR,
        title=_title(sections),
        policy=_policy(script),
        style=Markup(style),
        script=Markup(script),
        answers=Markup(embedded_json(browser_data(sections))),
        drawn=lambda chart: Markup(chart.svg),
        sections=told,
        training=training,
        pictures=[f"{chart.name}.png" for chart in charts],
        origins=[_origin(section) for section in sections],
        command=command,
        written=f"{written:%Y-%m-%d %H:%M} {written.tzname()}",
        versions=installed_versions(PACKAGES),
    )
    # Names of folders may hold bytes that are no UTF-8.
    return Page(html.encode("utf-8", "backslashreplace").decode("utf-8"), tuple(charts))


def _title(sections: Sequence[Section]) -> str:
    if not sections:
        return "Training report"
    tasks = " and ".join(section.title for section in sections)
    compared = all(section.comparison is not None for section in sections)
    return f"{tasks}: A against B" if compared else f"{tasks}: evaluations"


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _policy(script: str) -> str:
    """No network at all, and no script but the one whose digest this is."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _origin(section: Section) -> dict[str, Any]:
    """The folder of each run, and what its answers depend on."""
    rows = []
    for member in section.members:
        config, hashes = member.run.config, member.run.config["hashes"]
        settings = {**config["settings"], "dtype": config["dtype"]}
        versions = config.get("versions", {})
        rows.append(
            {
                "look": member.look,
                "path": str(member.run.path),
                "hashes": {name: hashes[name] for name in sorted(hashes)},
                "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
                "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
            }
        )
    return {"title": section.title, "rows": rows}
