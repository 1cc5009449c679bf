"""SING: see README.md."""

from fastreid.config import CfgNode

from projects.SING.sing import SING

__all__ = ["SING", "add_config"]

COMMANDS = {
    "choose-sigma": (
        "projects.SING.commands.choose_sigma",
        "choose sigma of SING's adaptive fusion by cross validation",
    ),
    "classical": (
        "projects.SING.commands.classical",
        "evaluate LOMO features with XQDA, NFST or Euclidean distance",
    ),
}


def add_config(cfg: CfgNode) -> None:
    """Add SING's keys."""
    cfg.SING = CfgNode()
    # The streams trained on: h (HR), h2l (HR reduced by the anchor's factor), l (LR). Without h2l:
    # Table 3.
    cfg.SING.STREAMS = ["h", "h2l", "l"]
    # What stream l sees: small, images known only small (the paper's); or all, the LR twins of the
    # others too.
    cfg.SING.LR_STREAM = "all"
