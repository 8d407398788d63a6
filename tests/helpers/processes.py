"""The processes that another one started; one that ends while it is looked at is no error but gone."""

from contextlib import suppress

import psutil


def descendants(process):
    """All of them that still run, whatever they have been ended by since; none where the process itself is gone."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def command_line(process):
    """Its words with spaces between them; nothing where it has ended (a zombie has no command line either)."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def programs_of(process, name):
    """Those that have a name somewhere on their command line."""
    return [child for child in descendants(process) if name in command_line(child)]


def kill_all(process):
    """A process and all that it started, at once and for certain."""
    family = [*descendants(process), psutil.Process(process.pid)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
