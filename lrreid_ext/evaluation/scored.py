"""A test set's features under a config's TEST: what the evaluation and the report rank through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.fusion import chosen_anchors, weighed
from lrreid_ext.evaluation.groups import positions, query_groups
from lrreid_ext.evaluation.matching import Matching, match
from lrreid_ext.evaluation.sides import Side
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot
from lrreid_ext.results import Fusion

__all__ = ["Scored"]


@dataclass(frozen=True, eq=False)
class Scored:
    """A test set's features, its sides, and how TEST matches them.

    Attributes:
        cfg: the keys MODEL.ANCHORS.FACTORS and TEST.
        test_set: the images.
        features: of its images, in their order.
    """

    cfg: CfgNode
    test_set: TestSet
    features: Features

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Positions of every group of queries and of its parts, by TEST.FACTOR_BINS."""
        return dict(query_groups(self.test_set, self.cfg.TEST.FACTOR_BINS))

    @cached_property
    def anchors(self) -> list[int]:
        """Positions of the anchors whose distances are fused; [] of a model without any."""
        whole = self.features.features
        return chosen_anchors(self.cfg, whole) if whole.ndim == 3 else []

    @property
    def fusion(self) -> Fusion | None:
        """The anchors' factors and the sigma of their fusion; None of a model without anchors."""
        if not self.anchors:
            return None
        factors = [float(self.cfg.MODEL.ANCHORS.FACTORS[i]) for i in self.anchors]
        return Fusion(factors, float(self.cfg.TEST.FUSION.SIGMA))

    @cached_property
    def gallery(self) -> Side:
        """The gallery's images."""
        return self.images(positions(self.test_set, GALLERY), GALLERY)

    def query(self, group: str = QUERY) -> Side:
        """The queries of one of :attr:`groups`."""
        query, fusion = self.images(self.groups[group], group), self.fusion
        if fusion is None:
            return query
        return weighed(query, self.gallery, fusion.anchors, fusion.sigma)

    def images(self, index: Sequence[int] | NDArray[np.int64], name: str = "images") -> Side:
        """Some of the test set's images.

        Args:
            index: their positions.
            name: what errors call them.

        Raises:
            ConfigError: features that can't be ranked.
        """
        at, whole = list(index), self.features.features
        samples = [self.test_set.samples[i] for i in at]
        try:
            return Side(
                whole[at][:, self.anchors] if self.anchors else whole[at],
                np.array([sample.pid for sample in samples], dtype=np.int64),
                np.array([sample.camid for sample in samples], dtype=np.int64),
                name,
                self.features.native_size[at],
                samples=samples,
            )
        except ValueError as error:
            raise ConfigError(f"test set {self.test_set.name!r}: {error}") from error

    def single_shot(self, query: Side) -> SingleShot:
        """Rank queries against galleries drawn by TEST.DRAW, TRIALS and SEED."""
        test = self.cfg.TEST
        matching = Matching(query, self.gallery, test.METRIC)
        return single_shot(matching, trials=test.TRIALS, seed=test.SEED, draw=test.DRAW)

    def multi_shot(self, query: Side) -> Matching:
        """Match queries with the whole gallery, after what TEST.AQE and TEST.RERANK ask for."""
        return match(self.cfg, query, self.gallery)

    @cached_property
    def matching(self) -> Matching:
        """The test set's own queries, as :meth:`multi_shot` matches them."""
        return self.multi_shot(self.query())
