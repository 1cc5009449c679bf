"""Ranking, single-shot trials, image quality, and the evaluators."""

from lrreid_ext.evaluation.bootstrap import bootstrap_intervals
from lrreid_ext.evaluation.distance import METRICS, distance_chunks, distance_matrix
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.features import Features, extract, extract_features
from lrreid_ext.evaluation.image_quality import ImageQualityEvaluator, psnr, ssim, twin_files
from lrreid_ext.evaluation.matching import Matching, Side
from lrreid_ext.evaluation.ranking import Matches, RankStatistics, cmc, nearest, rank_statistics
from lrreid_ext.evaluation.reranking import expand, k_reciprocal
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot
from lrreid_ext.evaluation.verification import FARS, NoPairsError, Verification, tar_at_far

__all__ = [
    "FARS",
    "METRICS",
    "CrossResolutionEvaluator",
    "Features",
    "ImageQualityEvaluator",
    "Matches",
    "Matching",
    "NoPairsError",
    "RankStatistics",
    "Scored",
    "Side",
    "SingleShot",
    "Verification",
    "bootstrap_intervals",
    "cmc",
    "distance_chunks",
    "distance_matrix",
    "expand",
    "extract",
    "extract_features",
    "k_reciprocal",
    "nearest",
    "psnr",
    "rank_statistics",
    "single_shot",
    "ssim",
    "tar_at_far",
    "twin_files",
]
