"""The report's section on gate weights."""

from __future__ import annotations

from lrreid_ext.errors import ConfigError
from lrreid_ext.report.blocks import Block, Note, figure_of
from lrreid_ext.report.context import Content, Context
from projects.FFSR_RIFE.gates import FACTORS, draw, dual_stream_of, measure

__all__ = ["gate_weights"]

# Images that the gates are read from, at each factor.
IMAGES = 200


def gate_weights(context: Context) -> Content:
    """Weights of dual streams against resolution."""
    blocks: list[Block] = []
    whys = []
    for k, run in enumerate(context.runs):
        try:
            dual_stream_of(run.model.module)
            rows, _, verdict = measure(run.cfg, run.model.module, run.data_set, FACTORS, IMAGES)
        except ConfigError as error:
            whys.append(str(error))
            continue
        alt = f"Gates of {run.name} against the resolution r. {verdict}"
        drawn = draw(rows)
        drawn.suptitle(run.name, fontsize="medium")
        blocks += [
            figure_of(drawn, f"gates{k}", alt, "Bands: a standard deviation over the images."),
            Note(verdict + ". Numbers are Spearman's rank correlations with r."),
        ]
    if not blocks:
        dual = [w for w in whys if "DUAL" in w]
        return dual[0] if dual else "no run has a dual-stream backbone"
    return blocks
