"""The keys that ``lrreid_ext`` adds to fastreid's; a component's own are beside its class."""

from __future__ import annotations

import os

from fastreid.config import CfgNode

# Lists of numbers that are empty by default, where no default shows what they hold.
EMPTY_LISTS_OF_NUMBERS = frozenset(
    {
        "DATASETS.FOLD", "INPUT.LR.CAMERAS", "INPUT.LR.RANGE", "INPUT.LR.WIDTHS",
        "TEST.FUSION.ANCHORS",
    }
)  # fmt: skip


def add_config(cfg: CfgNode) -> None:
    """Add every key of ``lrreid_ext`` with its default. fastreid's own keys stay as they are."""
    # Modules to import before a config is merged: dotted names, or paths of .py files (relative to
    # the YAML that names them). They register entries and may offer add_config(cfg). And recipes of
    # your own: paths of .yml files, see lrreid_ext.data.recipes.written.
    cfg.PLUGINS = []
    # Seed of everything random in training: initial weights, sampling, augmentation, dropout.
    cfg.SEED = 0
    # Extra training hooks, by name in HOOK_REGISTRY.
    cfg.HOOKS = []
    # Training phases by name, in the order written; see lrreid_ext.config.phases. Empty: one phase
    # of SOLVER.MAX_EPOCH epochs that trains everything.
    cfg.PHASES = CfgNode(new_allowed=True)
    # Name of the phase to start at ("": the first). The weights that earlier phases would have
    # made come from MODEL.WEIGHTS.
    cfg.START_PHASE = ""

    # ------------------------------------------------------------------ data
    # Folder that holds sources and built data sets.
    cfg.DATASETS.ROOT = os.environ.get("FASTREID_DATASETS", "datasets")
    # Folder of the ordinary data set that a recipe is built from ("": looked for below ROOT).
    cfg.DATASETS.SOURCE = ""
    # Leave out a part of the training identities, for validation: [i, k] is the i-th (from 0) of k
    # parts, drawn at random by identity.
    cfg.DATASETS.FOLD = []
    # Share of the training identities whose labels are known (0 to 1), drawn at random by SEED; and
    # what becomes of the images of the others: drop, or keep for the losses that ask for no label
    # (a front-end's, an adversary's).
    cfg.DATASETS.LABELLED = 1.0
    cfg.DATASETS.UNLABELLED = "drop"
    # Recipe fields to change, by recipe: {synth_pedestrians: {identities: 100}}.
    cfg.DATASETS.OPTIONS = CfgNode(new_allowed=True)

    # Low-resolution twins made while training.
    cfg.INPUT.LR = CfgNode()
    # The factors drawn from, one per sample; a number >= 1 each.
    cfg.INPUT.LR.FACTORS = [2, 3, 4]
    # If two numbers, the factor is drawn uniformly from this range instead.
    cfg.INPUT.LR.RANGE = []
    # If two whole numbers, the twin's width in pixels is drawn from low (included) to high instead,
    # as in the VR sets; an image narrower than that stays as it is.
    cfg.INPUT.LR.WIDTHS = []
    # Degradation kernel, by name in KERNEL_REGISTRY: bicubic, bilinear, lanczos, area, cv2-linear,
    # max-pool; or with blur, noise and compression drawn for each sample: blur, noise, jpeg,
    # first-order, second-order, shuffled (see lrreid_ext.data.kernels).
    cfg.INPUT.LR.KERNEL = "bicubic"
    # What the network is trained on: hr (images as they are), lr (their degraded twins), mixed
    # (each sample degraded with probability PROB), both (every sample as it is and degraded).
    cfg.INPUT.LR.TRAIN_ON = "lr"
    cfg.INPUT.LR.PROB = 0.5
    # Each training image keeps one factor in all epochs, as in a set that was degraded for good;
    # otherwise every epoch draws anew.
    cfg.INPUT.LR.FIXED = False
    # Training images of these cameras (numbers of the data set) are known only as their LR twins.
    cfg.INPUT.LR.CAMERAS = []
    # Factor of a third twin of each training image, images_synthetic (SING's x_h2l); 0: none.
    cfg.INPUT.LR.SYNTHETIC = 0.0
    # Native size of test images: that of the file (file), or an estimate from the image itself, for
    # crops that somebody may have enlarged (estimated); see lrreid_ext.data.resolution. Front-ends,
    # backbones and the fusion of anchors go by it.
    cfg.INPUT.NATIVE_SIZE = "file"
    # Folder with a foreground mask for each training image: <its name without suffix>.png, white
    # where the person is ("": none). They become the batch's masks.
    cfg.INPUT.MASKS = ""

    # ------------------------------------------------------------------ model
    # Super-resolution front-end, by name in FRONTEND_REGISTRY.
    cfg.MODEL.SR = CfgNode()
    cfg.MODEL.SR.NAME = "Identity"
    # Which images pass through the front-end: all, or lr (those reduced by a factor above 1; where
    # the factor is unknown, those with fewer native rows than the network's input).
    cfg.MODEL.SR.APPLY = "all"
    # Weights of a front-end trained before ("": its own initial weights).
    cfg.MODEL.SR.WEIGHTS = ""
    # Pixel loss (l1 or mse, on the 0-1 scale) and its weight; 0 leaves the loss out.
    cfg.MODEL.SR.LOSS = "l1"
    cfg.MODEL.SR.LOSS_WEIGHT = 1.0

    # Keep convolution weights channels-last: a quarter faster on CPUs, and on GPUs with AMP.
    cfg.MODEL.CHANNELS_LAST = True

    # Initial weights from a file of any origin: [pattern, replacement] pairs are tried in order on
    # each of its keys (regular expressions, the first that matches wins); a list of replacements
    # fills several parts of the model; keys that none matches, or whose replacement is "", are left
    # out and listed. Or, in place of MAP, whose names the file has: torchreid, fastreid or timm.
    cfg.MODEL.INIT = CfgNode()
    cfg.MODEL.INIT.WEIGHTS = ""
    cfg.MODEL.INIT.MAP = []
    cfg.MODEL.INIT.FORMAT = ""

    # ------------------------------------------------------------------ solver
    # Learning-rate factors by module: [["frontend", 0.1], ...]; the longest matching prefix counts.
    cfg.SOLVER.LR_FACTORS = []
    # OneCycleLR: share of the steps in which the rate rises; and whether momentum (Adam's first
    # beta) runs from 0.95 to 0.85 and back against it, as in PyTorch, or stays as it is.
    cfg.SOLVER.ONE_CYCLE_PCT_START = 0.3
    cfg.SOLVER.ONE_CYCLE_MOMENTUM = True
    # Models with several optimisers (adversaries): SOLVER keys of each by its name, and EVERY, how
    # many steps of the training it takes one in: {critic: {OPT: Adam, EVERY: 2}}; see
    # lrreid_ext.engine.optimizers. What isn't named is as for the main one.
    cfg.SOLVER.OPTIMIZERS = CfgNode(new_allowed=True)
    # Batches whose gradients are added up before a step.
    cfg.SOLVER.ACCUMULATE = 1
    # Mixed precision: float16 (with a gradient scaler; GPUs) or bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # DistributedDataParallel looks for parameters that took no part in a step.
    cfg.SOLVER.FIND_UNUSED = False
    # Log every so many iterations.
    cfg.SOLVER.LOG_PERIOD = 20

    # ------------------------------------------------------------------ evaluation
    # Evaluators, by name in EVALUATOR_REGISTRY. ImageQualityEvaluator adds PSNR and SSIM of the
    # restored queries against their HR twins.
    cfg.TEST.EVALUATORS = ["CrossResolutionEvaluator"]
    # Protocols of the standard evaluator.
    cfg.TEST.PROTOCOLS = ["single_shot", "multi_shot"]
    # Single-shot: trials, and the seed of their draws.
    cfg.TEST.TRIALS = 10
    cfg.TEST.SEED = 0
    # Single-shot: shared (one gallery drawn per trial, for all queries) or per_query (one per trial
    # and query, as some published code has it, with TRIALS 100).
    cfg.TEST.DRAW = "shared"
    cfg.TEST.RANKS = [1, 5, 10, 20]
    # Every query's high-resolution twin is degraded by each of these too, and reported by itself.
    cfg.TEST.FACTORS = [2, 3, 4]
    # Also report the queries' high-resolution twins against the gallery (HR -> HR).
    cfg.TEST.HR = True
    # Queries of more than eight different factors are reported in bins with these lower edges, the
    # first of them 1; in bins of other edges than these, queries of any factors are.
    cfg.TEST.FACTOR_BINS = [1, 2, 3, 4, 6, 8, 12, 16]
    # Mixed gallery: the share of its HR images that is reduced, by which factors; which images, and
    # by how much, is drawn from their names and TEST.SEED. 0 leaves the gallery as it is.
    cfg.TEST.GALLERY = CfgNode()
    cfg.TEST.GALLERY.LR_SHARE = 0.0
    cfg.TEST.GALLERY.LR_FACTORS = [2, 3, 4]
    # Multi-shot, with TEST.ROC.ENABLED: true accept rates are reported at these false accept rates.
    cfg.TEST.ROC.FARS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
    # Confidence intervals by the bootstrap, seeded by TEST.SEED: how many draws of the queries (0:
    # none; 1000 will do), the level, and what is drawn (identity, with all its queries, or query).
    cfg.TEST.CI = CfgNode()
    cfg.TEST.CI.REPEATS = 0
    cfg.TEST.CI.LEVEL = 0.95
    cfg.TEST.CI.BY = "identity"
    # The best checkpoint is chosen by this figure, e.g. mlr_cuhk01/multi_shot/query/mAP ("": the
    # first one reported).
    cfg.TEST.BEST_METRIC = ""
    # Folder where the features of evaluated checkpoints are kept ("": nowhere), so that they can be
    # scored again by other protocols without images or network; see lrreid eval.
    cfg.TEST.CACHE = ""
    # Evaluate the training identities that DATASETS.FOLD left out, and not the test set.
    cfg.TEST.ON_FOLD = False
    # Fusion of a model with anchors (MODEL.ANCHORS): which anchors, by factor ([]: all that are
    # trained), and sigma of SING's Eq. 8 (0: all weigh the same; lrreid choose-sigma chooses).
    cfg.TEST.FUSION = CfgNode()
    cfg.TEST.FUSION.ANCHORS = []
    cfg.TEST.FUSION.SIGMA = 0.0
    # --eval-only: evaluate the initial weights (MODEL.INIT), as other people publish them.
    cfg.TEST.INITIAL = False
    # --eval-only: the phase whose step decides what is evaluated ("": the one that the checkpoint
    # was saved in).
    cfg.TEST.PHASE = ""
    cfg.TEST.NUM_WORKERS = 2
