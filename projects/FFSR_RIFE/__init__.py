"""FFSR + RIFE: see README.md. Its network's parts are in ``lrreid_ext.modeling``."""

from __future__ import annotations

from typing import Any

from lrreid_ext.registry import REPORT_REGISTRY

COMMANDS = {
    "gates": (
        "projects.FFSR_RIFE.commands.gates",
        "show whether the gates of a dual-stream backbone learned resolution",
    ),
    "objective": (
        "projects.FFSR_RIFE.commands.objective",
        "draw same-person over different-person distances as resolution falls",
    ),
}


@REPORT_REGISTRY.register()
def gates(context: Any) -> Any:
    """Gate weights"""
    from projects.FFSR_RIFE.report import gate_weights  # on use: drawing takes time to import

    return gate_weights(context)
