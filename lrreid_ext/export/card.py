"""The model card: what a model is, was trained on, reaches, and must not be used for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import lrreid_ext
from lrreid_ext.config import CfgNode, phase_cfg, phases_done
from lrreid_ext.evaluation.cost import parameters
from lrreid_ext.results import Results, Training, portable, results_table, stored_results
from lrreid_ext.results.provenance import config_hash, weights_hash
from lrreid_ext.trained import TrainedModel
from lrreid_ext.weights import HUB

__all__ = ["model_card"]

TAGS = ["person-re-identification", "image-retrieval", "low-resolution", "super-resolution"]

USE = """\
It compares pictures of persons that people agreed to have compared, or where the law clearly allows
it: research on resolution, and systems whose operators answer for each match. A person looks at
every match before anything follows from it.

It isn't meant for following people without their knowledge or against their will, for deciding
about anybody without a human, for telling age, sex, origin, health or feelings, or for recognising
faces."""

PRIVACY = """\
The weights hold no images, but they were made from pictures of people, and the classifier among
them has one row for each training identity. Embeddings are personal data where the pictures are:
keep them as safe as the pictures, and no longer than needed. Training sets' terms bind who uses
what was made from them."""


def model_card(run: TrainedModel, license: str) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        run: the model. Figures come from the ``results_*.json`` in its folder (OUTPUT_DIR) that are
            of these weights.
        license: the hub's identifier of the license.

    Raises:
        ResultsError: a results file that can't be used.
    """
    stored, _ = stored_results(run.cfg.OUTPUT_DIR, Training.from_json(run.training))
    results = [content.portable() for content in stored.values()]
    front = {
        "license": license,
        "library_name": "lrreid-ext",
        "pipeline_tag": "image-feature-extraction",
        "tags": TAGS,
    }
    sections = {
        "What it is": _model(run),
        "Use": _usage(run),
        "Data": _data(run, results),
        "Training": _training(run),
        "Figures": _figures(run, results),
        "Limits": _limits(run, results),
        "Intended use": USE,
        "Privacy": PRIVACY,
        "License": _license(license),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    head = yaml.safe_dump(front, sort_keys=False)
    return f"---\n{head}---\n\n# {run.name}\n\n{body}\n"


def _list(rows: dict[str, Any]) -> str:
    return "\n".join(
        f"- {name}: {value}" for name, value in rows.items() if value not in ("", None)
    )


def _model(run: TrainedModel) -> str:
    cfg = run.cfg
    node = cfg.MODEL
    method = node.META_ARCHITECTURE
    if method == "Anchors":
        factors = ", ".join(f"x{f:g}" for f in node.ANCHORS.FACTORS)
        method = f"one {node.ANCHORS.OF} for each of the factors {factors}"
    backbone = node.BACKBONE.NAME
    if backbone == "build_timm_backbone":
        backbone += f" ({node.BACKBONE.TIMM_NAME})"
    height, width = cfg.INPUT.SIZE_TEST
    applied = {"lr": ", on low-resolution images", "all": ""}[node.SR.APPLY]
    rows = {
        "architecture": method,
        "front-end": f"{node.SR.NAME}{applied}",
        "backbone": backbone,
        "head": node.HEADS.NAME,
        "input": f"RGB crops of any size, resized to {height}x{width}; their native size is used "
        "where the model asks for it",
        "parameters": f"{parameters(run.module) / 1e6:.2f} M",
        "compared by": f"{cfg.TEST.METRIC} distance",
        "config hash": f"`{config_hash(cfg)}`",
        "weights hash": f"`{weights_hash(run.module)}`",
    }
    return (
        "Person re-identification across resolutions, by "
        f"lrreid-ext {lrreid_ext.__version__}: a picture of a person to an embedding that is near "
        "those of the same person, also where one picture has few pixels.\n\n" + _list(rows)
    )


def _usage(run: TrainedModel) -> str:
    plugins = [Path(p).name for p in run.cfg.PLUGINS if p.endswith(".py")]
    needs = "".join(f"\nNeeds the plugin {name} beside `config.yaml`.\n" for name in plugins)
    return (
        f"{needs}\n```python\nfrom lrreid_ext import load_model\n\n"
        f'model = load_model("{HUB}owner/name")\n'
        'features = model.embed(["query.png", "gallery.png"])\n```'
    ).lstrip()


def _data(run: TrainedModel, results: Sequence[Results]) -> str:
    phases = phases_done(run.cfg, run.training.get("epochs"))
    images_of = {phase.name: _training_images(phase_cfg(run.cfg, phase)) for phase in phases}
    if len(set(images_of.values())) > 1:
        images = "; ".join(f"in phase {name} {kinds}" for name, kinds in images_of.items())
    else:
        images = next(iter(images_of.values()), "none")
    manifests = {r.test_set: r.manifest_hash for r in results if r.manifest_hash}
    rows = {
        "trained on": ", ".join(run.cfg.DATASETS.NAMES) or "not recorded",
        "identities trained on": run.cfg.MODEL.HEADS.NUM_CLASSES,
        "images shown in training": images,
        **{f"manifest of {name}": f"`{digest}`" for name, digest in manifests.items()},
    }
    return _list(rows)


def _training_images(cfg: CfgNode) -> str:
    """The kinds of training images, by INPUT.LR."""
    lr = cfg.INPUT.LR
    if lr.TRAIN_ON == "hr":
        return "hr"
    drawn = ", ".join(f"{f:g}" for f in lr.FACTORS)
    if lr.RANGE:
        drawn = "{:g} to {:g}".format(*lr.RANGE)
    reduced = f"factors {drawn}, {lr.KERNEL}"
    if lr.WIDTHS:
        reduced = "widths {} to {} pixels, {}".format(*lr.WIDTHS, lr.KERNEL)
    return f"{lr.TRAIN_ON} (low-resolution twins: {reduced})"


def _training(run: TrainedModel) -> str:
    training = portable(run.training)
    if not training:
        return "The file of the weights doesn't record how they were trained."
    machine = training.get("machine", {})
    epochs, total = training.get("epochs"), training.get("of")
    rows = {
        "command": f"`{training['command']}`" if training.get("command") else "",
        "commit": training.get("commit", ""),
        "seed": training.get("seed"),
        "epochs": f"{epochs} of {total}, phase {training.get('phase') or 'only'}",
        "machine": ", ".join(
            str(machine[key]) for key in ("gpu", "cpu", "torch") if machine.get(key)
        ),
    }
    return _list(rows)


def _figures(run: TrainedModel, results: Sequence[Results]) -> str:
    if not results:
        return "None: this run hasn't been evaluated."
    names = [run.name] * len(results)
    commands = dict.fromkeys(r.command for r in results)
    block = "\n".join(c for c in commands if c)
    return (
        "MLR: low-resolution queries against a high-resolution gallery; x2, x4: all queries "
        "reduced by that factor. Measured here, not taken from a paper.\n\n"
        + results_table(results, names=names)
        + (f"\n```\n{block}\n```" if block else "")
    )


def _limits(run: TrainedModel, results: Sequence[Results]) -> str:
    sets = list(dict.fromkeys(r.test_set for r in results))
    measured = f"on {', '.join(sets)} alone" if sets else "nowhere yet"
    lines = [
        f"Measured {measured}. Other cameras, countries, seasons and crowds give other figures, "
        "and mostly lower ones.",
        "People in like clothes are taken for each other; who changes clothes isn't found again.",
        "Where low resolution was made by reducing pictures: real cameras also blur, compress and "
        "add noise.",
        "Nobody has measured whether it errs more for some groups of people than for others.",
    ]
    if run.cfg.MODEL.SR.NAME != "Identity":
        lines.append(
            "Restored pictures are guesses that help the comparison. They are no evidence."
        )
    return "\n".join(f"- {line}" for line in lines)


def _license(license: str) -> str:
    if license == "other":
        return (
            "The publisher of this model chose none. The terms of the training sets named above "
            "bind in any case; many allow research only."
        )
    return f"`{license}`, for the weights. The terms of the training sets named above bind as well."
