"""Hooks for evaluation, checkpoints and progress; fastreid's are kept for timing and writing."""

from __future__ import annotations

import logging
import sys

from fastreid.engine.hooks import EvalHook, HookBase
from fastreid.evaluation.testing import flatten_results_dict
from tqdm import tqdm

from lrreid_ext.config import phase_at
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest

logger = logging.getLogger(__name__)


class Evaluate(EvalHook):
    """Evaluate every so many epochs, and after the last one. An earlier phase's last epoch counts.

    Args:
        period: in epochs.
    """

    def __init__(self, period: int) -> None:
        super().__init__(period, self._evaluate)

    def _evaluate(self) -> dict[str, object]:
        trainer = self.trainer
        results = trainer.test(trainer.cfg, trainer.raw_model)
        flat = flatten_results_dict(results)
        trainer.last_results = {k: float(v) for k, v in flat.items()}
        return results

    def after_epoch(self) -> None:
        """Evaluate if it is time."""
        done = self.trainer.epoch + 1
        if done % self._period == 0 or done == phase_at(self.trainer.phases, done - 1).end:
            self._do_eval()

    def after_train(self) -> None:
        """Nothing: the last epoch has been evaluated, or training failed."""


class BestCheckpointer(HookBase):
    """Save checkpoints, and remember across a resume which was the best.

    ``model_last.pth`` every period, ``phase_<name>.pth`` at a phase's end, ``model_best.pth``
    whenever TEST.BEST_METRIC improved within the phase, ``model_final.pth`` in the end.

    Args:
        period: in epochs.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ConfigError("SOLVER.CHECKPOINT_PERIOD: at least 1 epoch")
        self.period = period
        self._seen: object = None

    def before_train(self) -> None:
        """A resumed run has judged its stored results already."""
        self._seen = self.trainer.last_results

    def after_epoch(self) -> None:
        """Save what is due."""
        trainer = self.trainer
        done = trainer.epoch + 1
        phase = trainer.phase
        names = []
        if self._improved():
            names.append("model_best")
        if done == phase.end:
            names.append(f"phase_{phase.name}")
        if done == trainer.max_epoch:
            names.append("model_final")
        elif done % self.period == 0:
            names.append("model_last")
        trainer.checkpointer.save_as(names)
        resumable = [n for n in names if n != "model_best"]
        if resumable and trainer.checkpointer.save_to_disk:
            trainer.checkpointer.tag_last_checkpoint(f"{resumable[-1]}.pth")

    def _improved(self) -> bool:
        results = self.trainer.last_results
        if not results or results is self._seen:
            return False
        self._seen = results
        name = self.trainer.cfg.TEST.BEST_METRIC or next(iter(results))
        if name not in results:
            raise ConfigError(
                f"TEST.BEST_METRIC: no figure is called {name!r}.{suggest(name, results)} "
                f"There are: {', '.join(results)}"
            )
        best = self.trainer.best
        if best and best["metric"] == name and results[name] <= best["value"]:
            return False
        self.trainer.best = {"metric": name, "value": results[name], "epoch": self.trainer.epoch}
        logger.info("Best so far: %s %.2f after epoch %d", name, results[name], self.trainer.epoch)
        return True


class Progress(HookBase):
    """A progress bar over all iterations, where the standard error is a terminal."""

    def before_train(self) -> None:
        """Open the bar."""
        trainer = self.trainer
        self._bar = tqdm(
            total=trainer.max_iter,
            initial=trainer.start_iter,
            disable=None,
            unit="it",
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def after_step(self) -> None:
        """Advance it."""
        self._bar.set_description(self.trainer.phase.name, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close it."""
        self._bar.close()
