"""Ranking, single-shot trials, image quality, and the evaluators."""

from lrreid_ext.evaluation.bootstrap import bootstrap_intervals
from lrreid_ext.evaluation.distance import METRICS, distance_chunks, distance_matrix
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.image_quality import ImageQualityEvaluator, psnr, ssim, twin_files
from lrreid_ext.evaluation.inference import Isolated, extract
from lrreid_ext.evaluation.per_query import single_shot_per_query
from lrreid_ext.evaluation.provenance import provenance
from lrreid_ext.evaluation.ranking import RankStatistics, cmc, rank_statistics
from lrreid_ext.evaluation.report import load_results, results_table
from lrreid_ext.evaluation.reranking import ReRanked, k_reciprocal
from lrreid_ext.evaluation.single_shot import SingleShot, draw_gallery, single_shot
from lrreid_ext.evaluation.verification import FARS, Verification, tar_at_far

__all__ = [
    "FARS",
    "METRICS",
    "CrossResolutionEvaluator",
    "ImageQualityEvaluator",
    "Isolated",
    "RankStatistics",
    "ReRanked",
    "SingleShot",
    "Verification",
    "bootstrap_intervals",
    "cmc",
    "distance_chunks",
    "distance_matrix",
    "draw_gallery",
    "extract",
    "k_reciprocal",
    "load_results",
    "provenance",
    "psnr",
    "rank_statistics",
    "results_table",
    "single_shot",
    "single_shot_per_query",
    "ssim",
    "tar_at_far",
    "twin_files",
]
