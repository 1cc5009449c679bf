"""What one evaluation measured, and the file that holds it."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from lrreid_ext.data.samples import QUERY
from lrreid_ext.errors import ResultsError
from lrreid_ext.files import write_json
from lrreid_ext.results.names import PROTOCOLS, FigureName, results_file
from lrreid_ext.results.portable import portable

# Content of JSON.
Json = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure in percent.

    Attributes:
        value: the figure.
        std: standard deviation over single-shot trials, or over the parts of a mean.
        ci: lower and upper end of the confidence interval.
    """

    value: float
    std: float | None = None
    ci: tuple[float, float] | None = None

    def text(self, sign: str = "±") -> str:
        """``24.6 ± 3.5``, or ``24.6`` without a deviation."""
        return f"{self.value:.1f}" + ("" if self.std is None else f" {sign} {self.std:.1f}")

    @property
    def interval(self) -> str:
        """``[28.1, 33.0]``, or "" without an interval."""
        return f"[{self.ci[0]:.1f}, {self.ci[1]:.1f}]" if self.ci else ""


@dataclass
class Figures:
    """One group's figures under one protocol.

    Attributes:
        unmatched: queries without a right answer in the gallery; they are left out.
        named: figures by name: ``Rank-1``, ``mAP``, ``mINP``, ``TAR@1e-4`` ...; None where there
            is no query to measure it on.
        trials: single-shot only: for each trial the values of ``named``, in its order.
        genuine_pairs, impostor_pairs: pairs that the true accept rates were measured on.
    """

    unmatched: int = 0
    named: dict[str, Figure | None] = field(default_factory=dict)
    trials: list[list[float | None]] | None = None
    genuine_pairs: int | None = None
    impostor_pairs: int | None = None

    def starting(self, *prefixes: str) -> list[str]:
        """Names of the figures that start with one of the prefixes."""
        return [name for name in self.named if name.startswith(prefixes)]


@dataclass
class Group:
    """One group of queries.

    Attributes:
        queries: how many there are, with those that are left out.
        junk: queries whose identity is unknown; they are left out.
        protocols: figures by protocol.
    """

    queries: int
    junk: int = 0
    protocols: dict[str, Figures] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """Queries that no figure includes."""
        return self.junk + max(figures.unmatched for figures in self.protocols.values())


def _read_group(content: Any) -> Any:
    """Read the flat form of a file: ``queries``, and for each protocol ``Rank-1``, ``Rank-1_std``,
    ``Rank-1_ci`` ..."""
    if not isinstance(content, Mapping):
        return content
    group = {k: v for k, v in content.items() if k not in PROTOCOLS}
    group["protocols"] = {p: _read_figures(content[p]) for p in PROTOCOLS if p in content}
    return group


def _read_figures(content: Mapping[str, Any]) -> Json:
    counts = {f.name for f in fields(Figures)} - {"named"}
    named = {
        name: None
        if value is None
        else {"value": value, "std": content.get(f"{name}_std"), "ci": content.get(f"{name}_ci")}
        for name, value in content.items()
        if name not in counts and not name.endswith(("_std", "_ci"))
    }
    return {"named": named, **{k: content[k] for k in counts if k in content}}


def _write_group(group: Group) -> Json:
    protocols = {name: _write_figures(figures) for name, figures in group.protocols.items()}
    return {"queries": group.queries, "junk": group.junk, **protocols}


def _write_figures(figures: Figures) -> Json:
    content: Json = {"unmatched": figures.unmatched}
    for name, figure in figures.named.items():
        content[name] = figure and figure.value
        if figures.trials or (figure and figure.std is not None):
            content[f"{name}_std"] = figure and figure.std
    for key in ("trials", "genuine_pairs", "impostor_pairs"):
        if (value := getattr(figures, key)) is not None:
            content[key] = value
    return content | {f"{n}_ci": list(f.ci) for n, f in figures.named.items() if f and f.ci}


@dataclass(frozen=True)
class Intervals:
    """How confidence intervals were computed.

    Attributes:
        level: share of the draws within the interval, 0 to 1.
        repeats: bootstrap draws.
        by: what is drawn, ``identity`` or ``query``.
        seed: of the draws.
    """

    level: float
    repeats: int
    by: str
    seed: int

    @property
    def label(self) -> str:
        """``95 % intervals, 1000 bootstrap draws of identities, seed 0``."""
        units = {"identity": "identities", "query": "queries"}[self.by]
        return (
            f"{100 * self.level:g} % intervals, {self.repeats} bootstrap draws of {units}, "
            f"seed {self.seed}"
        )


@dataclass(frozen=True)
class Fusion:
    """How the distances of several anchors were fused: their factors, and sigma of the weights."""

    anchors: list[float]
    sigma: float


@dataclass(frozen=True)
class Counts:
    """Images and identities of the gallery.

    Attributes:
        gallery: images without junk.
        gallery_junk: junk images, which are left out.
        distractors: images of nobody in the query.
        identities: identities without distractors.
        gallery_lr: low-resolution images.
    """

    gallery: int
    gallery_junk: int
    distractors: int
    identities: int
    gallery_lr: int = 0


@dataclass(frozen=True)
class Training:
    """How weights were trained. A field is None where an earlier version did not record it.

    Attributes:
        command, commit, machine: see :func:`lrreid_ext.results.provenance.provenance`.
        seed: SEED.
        data_sets: DATASETS.NAMES.
        fold: DATASETS.FOLD.
        phase: name of the last phase.
        epochs: epochs trained.
        of: epochs of the whole training.
    """

    command: str | None = None
    commit: str | None = None
    machine: Json | None = None
    seed: int | None = None
    data_sets: list[str] | None = None
    fold: list[int] | None = None
    phase: str | None = None
    epochs: int | None = None
    of: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Training | None:
        """Read what a checkpoint records; None if it records nothing."""
        return TypeAdapter(cls).validate_python(content) if content else None

    @property
    def state(self) -> str:
        """``phase student after 10 epochs``, or "" if that is unknown."""
        if self.phase is None or self.epochs is None:
            return ""
        return f"phase {self.phase} after {self.epochs} epochs"


@dataclass(frozen=True)
class Part:
    """One of the results that a mean was taken over.

    Attributes:
        name: for messages.
        split: of the recipe, if it has splits.
        training: how its weights were trained.
        manifest_hash, checkpoint, commit, machine: as in :class:`Results`.
    """

    name: str
    split: Any = None
    training: Training | None = None
    manifest_hash: str = ""
    checkpoint: str | None = None
    commit: str | None = None
    machine: Json | None = None


@dataclass
class Results:
    """What one evaluation measured.

    Attributes:
        test_set: its name.
        manifest_hash: hash of its manifest, or "".
        protocols: names of the protocols that were measured.
        trials: number of single-shot trials.
        seed: of the trials.
        metric: distance, ``cosine`` or ``euclidean``.
        groups: figures by group of queries: ``query``, ``query_hr``, ``x2``, ``query@2`` ...
        info: the test set's: recipe, options, split, mixed gallery ...
        training: how the weights were trained; None if unknown.
        draw: how single-shot galleries were drawn, ``shared`` or ``per_query``.
        std: what the standard deviations are over.
        ci: how confidence intervals were computed, or None.
        flip: whether features are means over an image and its mirror image.
        aqe: settings of query expansion, or None.
        rerank: settings of re-ranking, or None.
        fars: false accept rates, or None.
        fusion: of several anchors, or None.
        tie_rule: how equal distances rank.
        counts: of the gallery; None for a mean.
        over: of a mean: ``splits`` or ``runs``.
        parts: of a mean: what it was taken over.
        command, commit, machine, checkpoint: see
            :func:`lrreid_ext.results.provenance.provenance`.
        title, note, order: name, remark and place in a table of collected results.
    """

    test_set: str
    manifest_hash: str
    protocols: list[str]
    trials: int
    seed: int
    metric: str
    groups: dict[str, Annotated[Group, BeforeValidator(_read_group), PlainSerializer(_write_group)]]
    info: Json = field(default_factory=dict)
    training: Training | None = None
    draw: str = "shared"
    std: str = ""
    ci: Intervals | None = None
    flip: bool = False
    aqe: dict[str, float] | None = None
    rerank: dict[str, float] | None = None
    fars: list[float] | None = None
    fusion: Fusion | None = None
    tie_rule: str = ""
    counts: Counts | None = None
    over: str = ""
    parts: list[Part] = field(default_factory=list)
    command: str = ""
    commit: str = ""
    machine: Json = field(default_factory=dict)
    checkpoint: str = ""
    title: str = ""
    note: str = ""
    order: int | None = None

    # ------------------------------------------------------------ file
    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a ``results_<test set>.json``.

        Raises:
            ResultsError: no such file, not JSON, or not a results file.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except FileNotFoundError as error:
            raise ResultsError(f"{path}: no such file; lrreid eval writes it") from error
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: can't be read as JSON: {error}") from error
        return cls.from_json(content, str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that :meth:`load` reads."""
        write_json(path, self.to_json())

    @classmethod
    def from_json(cls, content: Any, name: str = "results") -> Results:
        """Read the content of a results file.

        Args:
            content: as parsed from JSON.
            name: of the file, for messages.

        Raises:
            ResultsError: it is no results file.
        """
        if isinstance(content, Mapping):
            # In the file, the training is part of the info.
            info = dict(content.get("info") or {})
            training = info.pop("training", None) or None
            content = {**content, "info": info, "training": training}
        try:
            results = TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultsError(f"{name}: not a results file: {where}: {first['msg']}") from error
        for protocol in results.protocols:
            for group in {QUERY: None, **results.groups}:
                if group not in results.groups or protocol not in results.groups[group].protocols:
                    raise ResultsError(f"{name}: 'groups' lacks {group!r} under {protocol!r}")
        return results

    def to_json(self) -> Json:
        """The content of a results file."""
        content: Json = TypeAdapter(Results).dump_python(self, mode="json")
        if training := content.pop("training"):
            content["info"]["training"] = {k: v for k, v in training.items() if v is not None}
        optional = ("over", "parts", "title", "note", "order")
        return {k: v for k, v in content.items() if k not in optional or v not in ("", [], None)}

    def portable(self) -> Results:
        """A copy without absolute paths; see :func:`lrreid_ext.results.portable.portable`."""
        return Results.from_json(portable(self.to_json()))

    # ------------------------------------------------------------ figures
    def figure(self, name: FigureName | str) -> Figure | None:
        """One figure; None where it was not measured.

        Raises:
            ConfigError: a name that isn't ``protocol/group/figure``.
        """
        name = name if isinstance(name, FigureName) else FigureName.parse(name)
        group = self.groups.get(name.group)
        figures = group and group.protocols.get(name.protocol)
        return figures.named.get(name.figure) if figures else None

    def flat(self) -> OrderedDict[str, float]:
        """Figures and deviations by ``protocol/group/figure``, without those that are None."""
        flat: OrderedDict[str, float | None] = OrderedDict()
        for protocol in self.protocols:
            for group, entry in self.groups.items():
                for name, figure in entry.protocols[protocol].named.items():
                    full = str(FigureName(protocol, group, name))
                    if figure:
                        flat[full], flat[f"{full}_std"] = figure.value, figure.std
        return OrderedDict((k, v) for k, v in flat.items() if v is not None)

    # ------------------------------------------------------------ labels
    @property
    def lr_gallery(self) -> bool:
        """Whether the gallery holds low-resolution images."""
        return self.counts is not None and self.counts.gallery_lr > 0

    @property
    def data_label(self) -> str:
        """Test set and manifest: ``caviar, manifest 0123456789ab``."""
        manifest = f", manifest {self.manifest_hash[:12]}" if self.manifest_hash else ""
        return self.test_set + manifest

    @property
    def draw_label(self) -> str:
        """``10 trials``, ``100 trials per query`` or ``10 splits x 10 trials``."""
        per_query = " per query" if self.draw == "per_query" else ""
        parts = f"{len(self.parts)} {self.over} x " if self.parts else ""
        return f"{parts}{self.trials} trials{per_query}"

    @property
    def multi_shot_label(self) -> str:
        """``multi-shot``, with query expansion and re-ranking, which single-shot does without."""
        return " with ".join(["multi-shot", *(k for k in ("aqe", "rerank") if getattr(self, k))])

    @property
    def measured(self) -> str:
        """What was measured, on one line: data, manifest, protocols, distance."""
        parts = []
        if "single_shot" in self.protocols:
            parts.append(f"single-shot, {self.draw_label}, seed {self.seed}")
        if "multi_shot" in self.protocols:
            over = f", {len(self.parts)} {self.over}" if self.parts else ""
            parts.append(f"{self.multi_shot_label}{over}")
        parts.append(f"{self.metric} distance")
        parts += ["flip"] if self.flip else []
        trained = (self.training and self.training.data_sets) or []
        if trained and not any(self.test_set.startswith(name) for name in trained):
            parts.append(f"trained on {', '.join(trained)}")
        if mixed := self.info.get("mixed_gallery"):
            factors = ", ".join(f"{f:g}" for f in mixed["factors"])
            parts.append(f"{100 * mixed['share']:g} % of the gallery reduced by {factors}")
        if self.ci:
            parts.append(self.ci.label)
        return f"{self.data_label}: {'; '.join(parts)}; percent."


def stored_results(
    folder: str | os.PathLike[str], training: Training | None, test_set: str = "*"
) -> tuple[dict[str, Results], dict[str, str]]:
    """The results files in a run's folder that were measured with certain weights.

    A run's folder holds the results of its last phase, and a folder in it those of an earlier
    phase. Weights of one phase must not get the figures of another.

    Args:
        folder: the run's.
        training: of the weights. Files match if phase and epochs are unknown on either side.
        test_set: only results on this one.

    Returns:
        Results by file name; and for files of other weights, which weights.

    Raises:
        ResultsError: a file that can't be used.
    """
    state = training.state if training else ""
    phase = (training and training.phase) or ""
    matching: dict[str, Results] = {}
    others: dict[str, str] = {}
    for place in (Path(folder) / phase, Path(folder)):
        for file in sorted(place.glob(results_file(test_set))):
            results = Results.load(file)
            measured = results.training.state if results.training else ""
            if state and measured and state != measured:
                others.setdefault(file.name, measured)
            else:
                matching.setdefault(file.name, results)
    return dict(sorted(matching.items())), {k: v for k, v in others.items() if k not in matching}


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")
