"""The copy of a run for Weights & Biases. The files in the run folder stay the record of truth."""

import logging
import os
import re
import uuid
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from vae_lab.config.roles import is_identity
from vae_lab.config.secrets import redact
from vae_lab.loggers import wandb_process
from vae_lab.loggers.wandb_process import WandbProcess, obstacle

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
MAX_TAG = 64  # characters that W&B takes


class WandbLogger(Logger):
    """Logs one run to W&B, and never stops, blocks or asks.

    W&B lives in a process of its own, started at the first use, on rank zero only. If the run cannot be online it is
    tracked offline, if that fails too it is not tracked; an error later on ends the tracking. Each of these is one
    warning. The training never waits; only its end does: a server that is dead, hangs or dies costs at most
    `init_timeout` + 10 seconds in all. What was not uploaded stays on disk for `wandb sync`.

    Resuming a run folder continues the same W&B run, whose id is kept in the file `wandb_id`. Offline every start
    writes a part of its own, which `wandb sync RUN_DIR/wandb/offline-run-*` appends in order. W&B counts the log calls
    itself; "step" is an ordinary value, declared as the x axis.

    The jobs of a sweep are one group, each tagged with its overrides, in one `wandb/` folder, that of the sweep.

    Args:
        save_dir: the run folder.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: groups runs in W&B; None is the name of the sweep, for its jobs.
        job_type: a second level of grouping.
        tags: labels; none are the overrides, for the jobs of a sweep.
        name: the run's name in W&B; None is the run folder's name.
        mode: "online", "offline", "disabled", or "auto": what WANDB_MODE says, else online if there is an API key.
        init_timeout: seconds to wait for the server at the start, > 0.

    Raises:
        ValueError: if mode or init_timeout is not one of these.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        name: str | None,
        mode: str,
        init_timeout: float,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"logger.wandb.mode must be one of {', '.join(MODES)}, got {mode!r}")
        if not init_timeout > 0:
            raise ValueError(f"logger.wandb.init_timeout must be > 0, got {init_timeout}")
        self._folder = Path(save_dir)
        home = self._folder.resolve()  # of wandb/
        name = name or home.name
        if (home.parent / "multirun.yaml").exists():  # which Hydra writes for a sweep
            home = home.parent
            path = self._folder / ".hydra" / "overrides.yaml"
            overrides = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
            group, tags = (
                group or home.name,
                tags
                or [
                    override[:MAX_TAG] for override in overrides if is_identity(override.lstrip("+~").partition("=")[0])
                ],
            )
        labels = {"project": project, "entity": entity, "group": group, "job_type": job_type, "tags": list(tags)}
        self._settings: dict[str, Any] = {"folder": str(home), "mode": mode, "init_timeout": float(init_timeout)}
        self._settings |= redact({"name": name, "labels": labels})
        self._process: WandbProcess | None = None
        self._is_over = False

    @property
    def name(self) -> str:
        return self._settings["name"]

    @property
    def version(self) -> str | None:
        """The W&B run id, None before the first start or where its file is damaged."""
        path = self._folder / "wandb_id"
        text = path.read_text(errors="replace").strip() if path.exists() else ""
        return text if re.fullmatch(r"[\w-]{1,64}", text, re.ASCII) else None

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def check(self) -> None:
        """Find out before training whether there is an API key if `mode` is online. No connection is made.

        Raises:
            ValueError: if there is none, or the environment is such that W&B does not start.
        """
        if self._settings["mode"] == "online" and (reason := obstacle(self._settings["init_timeout"])):
            raise ValueError(f"logger.wandb.mode=online is not possible: {reason}")

    def log_config(self, config: dict) -> None:
        """Store the resolved config, a plain nested dict; secrets are replaced."""
        self._tell("config", redact(config))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: `log_config` stores the whole config."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Store values of one step."""
        self._tell("metrics", metrics if step is None else {**metrics, "step": step})

    def log_picture(self, key: str, path: str | Path, step: int) -> None:
        """Store a PNG or GIF file under a key."""
        self._tell("picture", [key, str(Path(path).resolve()), step])

    def summarize(self, values: dict) -> None:
        """Set final values in the run's summary."""
        if values:
            self._tell("summary", redact(values))

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run, which W&B marks as failed if the code is not 0; further calls do nothing."""
        self._is_over = True
        if self._process is not None:
            self._process.finish(exit_code)
            self._process.close(1)

    @rank_zero_only
    def _tell(self, order: str, value: Any) -> None:
        if self._is_over:
            return
        if self._process is None:
            self._process = self._start()
        if self._process is not None:
            self._process.send(order, value)
        self._is_over = self._process is None or self._process.is_over

    def _start(self) -> WandbProcess | None:
        mode = self._settings["mode"] if self._settings["mode"] != "auto" else mode_of_environment()
        if mode == "disabled":
            return None
        run_id = self.version
        if run_id is None:
            # The agent of a W&B sweep has chosen one, by which the sweep will find the run.
            chosen = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
            run_id = chosen or uuid.uuid4().hex[:8]
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "wandb_id").write_text(run_id + "\n")
        upload_timeout = wandb_process.UPLOAD_TIMEOUT
        settings = {
            **self._settings,
            "mode": mode,
            "run_id": run_id,
            "pid": os.getpid(),
            "upload_timeout": upload_timeout,
        }
        try:
            process = WandbProcess()
        except (OSError, AssertionError, RuntimeError) as error:  # as where a process may not have any of its own
            log.warning("W&B does not start, this run is not tracked: %s", error)
            return None
        process.begin("start", settings, settings["init_timeout"])
        return process


def mode_of_environment() -> str:
    """What W&B's own variables say."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "").strip().lower() or "auto"
    if mode not in MODES:
        log.warning("WANDB_MODE must be one of %s, got %r: tracking offline", ", ".join(MODES), mode)
        return "offline"
    return mode
