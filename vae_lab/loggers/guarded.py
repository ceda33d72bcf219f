"""A logger that cannot fail the run."""

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from vae_lab.config.secrets import redact
from vae_lab.errors import one_line

log = logging.getLogger(__name__)


def guarded(name: str) -> Callable:
    """A method that calls the logger's own of that name, where it has one, until one fails."""

    def call(self: "GuardedLogger", *args: Any, **kwargs: Any) -> None:
        if self.is_over or not hasattr(self.logger, name):
            return
        try:
            getattr(self.logger, name)(*args, **kwargs)
        except Exception as error:  # loggers raise all kinds
            self.is_over = True
            reason = redact(one_line(error))
            log.warning("logger.%s ends here, the run and metrics.jsonl go on: %s", self.title, reason)

    return call


class GuardedLogger(Logger):
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

    name = property(lambda self: self.logger.name)
    version = property(lambda self: self.logger.version)
    save_dir = property(lambda self: self.logger.save_dir)

    log_metrics = guarded("log_metrics")
    log_hyperparams = guarded("log_hyperparams")
    log_picture = guarded("log_picture")
    log_graph = guarded("log_graph")
    after_save_checkpoint = guarded("after_save_checkpoint")
    save = guarded("save")
    finalize = guarded("finalize")
