"""PS-HRNet: see README.md."""

from fastreid.config import CfgNode

from projects.PSHRNet.psnet import Branch, PSHRNet

__all__ = ["Branch", "PSHRNet", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add PS-HRNet's keys."""
    cfg.PSHRNET = CfgNode()
    # lambda_PS of Eq. 12; 0: no pseudo-siamese loss.
    cfg.PSHRNET.PS_WEIGHT = 0.5
    # A trained model whose backbone and head are the teacher; start at the student then:
    # START_PHASE student PSHRNET.TEACHER_WEIGHTS logs/hr/model_final.pth
    cfg.PSHRNET.TEACHER_WEIGHTS = ""
    # What teacher and student compare (Eq. 11; the paper's best set of Table VII).
    cfg.PSHRNET.PS_TERMS = ["seq1", "seq4", "seq5", "pred_class_logits"]
