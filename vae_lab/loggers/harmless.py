"""A logger that cannot fail the run."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from vae_lab.config.secrets import redact
from vae_lab.errors import one_line

log = logging.getLogger(__name__)


class HarmlessLogger(Logger):
    """Any logger, so that its failure is one warning and the end of this copy, not of the run.

    Args:
        title: its name in the config, for the warning.
        logger: what does the work.
    """

    def __init__(self, title: str, logger: Logger):
        super().__init__()
        self.title = title
        self.logger = logger
        self.is_over = False

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Store values of one step."""
        self._try(self.logger.log_metrics, metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Store what Lightning gives as hyperparameters."""
        self._try(self.logger.log_hyperparams, *args, **kwargs)

    def log_picture(self, key: str, path: str | Path, step: int) -> None:
        """Store a PNG or GIF file under a key, if the logger takes pictures."""
        if hasattr(self.logger, "log_picture"):
            self._try(self.logger.log_picture, key, path, step)

    def log_graph(self, *args: Any) -> None:
        """Store the model's graph."""
        self._try(self.logger.log_graph, *args)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Store a checkpoint, if the logger does."""
        self._try(self.logger.after_save_checkpoint, checkpoint_callback)

    def save(self) -> None:
        """Write what was stored."""
        self._try(self.logger.save)

    def finalize(self, status: str) -> None:
        """Write all that was stored."""
        self._try(self.logger.finalize, status)

    def _try(self, method: Callable, *args: Any, **kwargs: Any) -> None:
        if self.is_over:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:  # loggers raise all kinds
            self.is_over = True
            reason = redact(one_line(error))
            log.warning("logger.%s ends here, the run and metrics.jsonl go on: %s", self.title, reason)
