"""Chapter 7: how to do it again."""

from __future__ import annotations

from merit.report.evidence import Evidence
from merit.report.figure import DataTable, Section

_PACKAGES = {"merit": "merit-tuning"}  # as pip knows them
_NOT_PACKAGES = ("python", "git_commit", "git commit", "commit")


def reproduce(evidence: Evidence) -> Section:
    """How to do it again."""
    versions = evidence.versions
    # "2.9.0+cpu" names a build of one index; any index has 2.9.0.
    pins = [
        f"{_PACKAGES.get(name, name)}=={value.partition('+')[0]}"
        for name, value in versions.items()
        if name not in _NOT_PACKAGES
    ]
    context = {
        "pins": " ".join(f"'{pin}'" for pin in pins),
        "versions": DataTable(["what", "version"], [[name, value] for name, value in versions.items()])
        if versions
        else None,
        "seed": evidence.config.get("seed"),
        "config": evidence.config_text,
        "problems": evidence.problems,
    }
    return Section("reproduce", "How to do it again", "reproduce", context)
