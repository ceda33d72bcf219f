"""Copies of a run for Weights & Biases. The files in the run folder stay the record of truth."""

import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from vae_lab.secrets import redact

log = logging.getLogger(__name__)
wandb_log = logging.getLogger("vae_lab.wandb")
wandb_log.setLevel(logging.WARNING)

MODES = ("auto", "online", "offline", "disabled")
FINISH_TIMEOUT = 8  # seconds


class WandbTracker(Logger):
    """Logs one run to W&B, and never stops, blocks or asks.

    Nothing happens before the first use: no import, no file, no connection. Then one run is started, on rank zero only.
    If that fails the run is tracked offline, if that fails too it is not tracked; an error later on ends the tracking.
    Each of these is one warning. A server that is dead, hangs or dies costs at most `init_timeout` + 10 seconds in all;
    what was not uploaded stays on disk for `wandb sync`.

    Resuming a run folder continues the same W&B run: the id is kept in the file `wandb_id`. An offline run cannot ask
    the server where it stood, so every start writes a part of its own, `wandb/offline-run-*`, with the same id.
    `wandb sync RUN_DIR/wandb/offline-run-*` appends the parts in order, also to a run that was online before. Nothing
    is dropped: W&B counts the log calls itself, and "step" is an ordinary value, declared as the x axis.

    Args:
        save_dir: the run folder.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: groups runs in W&B, for example by sweep.
        job_type: a second level of grouping.
        tags: labels.
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
        self._name = redact(name or self._folder.resolve().name)
        labels = {"project": project, "entity": entity, "group": group, "job_type": job_type, "tags": list(tags)}
        self._labels = redact(labels)
        self._mode = mode
        self._init_timeout = float(init_timeout)
        self._run = None
        self._is_over = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str | None:
        """The W&B run id, None before the first start."""
        path = self._folder / "wandb_id"
        return (path.read_text().strip() or None) if path.exists() else None

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started now if it was not."""
        if self._run is None and not self._is_over:
            self._run = self._start()
            self._is_over = self._run is None
        return self._run

    @rank_zero_only
    def check(self) -> None:
        """Find out before training whether the run can be online if that was asked for. No connection is made.

        Raises:
            ValueError: if WANDB_MODE is unknown, or the mode is online and there is no API key.
        """
        if self._wanted_mode() != "online":
            return
        try:
            has_api_key = self._has_api_key()
        except Exception as error:  # W&B raises all kinds for a broken environment
            raise ValueError(f"logger.wandb.mode=online, but W&B does not start: {_one_line(error)}") from error
        if not has_api_key:
            raise ValueError(
                "logger.wandb.mode=online needs an API key: set WANDB_API_KEY, run `wandb login`, "
                "or choose logger.wandb.mode=offline"
            )

    def log_config(self, config: dict) -> None:
        """Store the resolved config, a plain nested dict; secrets are replaced."""
        self._tell(lambda run: run.config.update(redact(config), allow_val_change=True))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: `log_config` stores the whole config."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Store values of one step."""
        self._tell(lambda run: run.log({**metrics, **_at(step)}))

    def log_picture(self, key: str, path: str | Path, step: int) -> None:
        """Store a PNG or GIF file under a key."""

        def store(run: Any) -> None:
            import wandb

            is_gif = Path(path).suffix == ".gif"
            picture = wandb.Video(str(path), format="gif") if is_gif else wandb.Image(str(path))
            run.log({key: picture, **_at(step)})

        self._tell(store)

    def summarize(self, values: dict) -> None:
        """Set final values in the run's summary."""
        self._tell(lambda run: run.summary.update(redact(values)))

    def finalize(self, status: str) -> None:
        """Nothing to do: pictures and results follow after Lightning is done, see `finish`."""

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run; further calls do nothing.

        Args:
            exit_code: 0 if the run was completed, else W&B marks it as failed.
        """
        run, self._run = self._run, None
        has_warned, self._is_over = self._is_over, True
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # tracking must not change how a run ends
            if not has_warned:
                log.warning("W&B: %s Upload the rest with: wandb sync %s", _one_line(error), run.settings.sync_dir)

    @rank_zero_only
    def _tell(self, action: Callable[[Any], None]) -> None:
        if self._is_over or (run := self.experiment) is None:
            return
        try:
            action(run)
        except Exception as error:  # tracking must not stop the training
            self._is_over = True
            log.warning("W&B tracking ends here, the run goes on: %s", _one_line(error))

    def _start(self) -> Any:
        modes: dict[str, tuple[str, ...]] = {"online": ("online", "offline"), "offline": ("offline",), "disabled": ()}
        try:
            mode = self._wanted_mode()
            if mode == "auto":
                mode = "online" if self._has_api_key() else "offline"
        except Exception as error:  # no wandb, or an environment it does not accept
            log.warning("W&B does not start, this run is not tracked: %s", _one_line(error))
            return None
        for attempt in modes[mode]:
            try:
                return self._init(attempt)
            except Exception as error:  # W&B raises all kinds
                fallback = "tracking offline instead" if attempt == "online" else "this run is not tracked"
                log.warning("W&B does not start %s, %s: %s", attempt, fallback, _one_line(error))
        return None

    def _init(self, mode: str) -> Any:
        wandb = self._load_wandb()
        self._folder.mkdir(parents=True, exist_ok=True)
        run_id = self.version or uuid.uuid4().hex[:8]
        (self._folder / "wandb_id").write_text(run_id + "\n")
        settings = wandb.Settings(
            init_timeout=self._init_timeout,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            console="off",  # train.log has it, without secrets
            x_disable_meta=True,  # would store sys.argv
            disable_git=True,
            save_code=False,
            symlink=False,
        )
        try:
            run = wandb.init(
                dir=self.save_dir,
                id=run_id,
                resume="allow",
                name=self._name,
                mode=mode,
                reinit="create_new",
                settings=settings,
                **self._labels,
            )
        except Exception:
            wandb.teardown()  # else the failed attempt keeps the run id in use
            raise
        run.define_metric("*", step_metric="step")
        folder = run.settings.sync_dir
        log.info("W&B: %s", run.url if mode == "online" else f"offline, upload with: wandb sync {folder}")
        return run

    def _load_wandb(self) -> Any:
        # Its telemetry goes to the same server: against one that hangs, it delays the end of the program by 20 seconds.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Silent also means that no request is made just to print who is logged in, which takes 10 seconds if it fails.
        setup = wandb.setup(wandb.Settings(silent=True, x_service_wait=self._init_timeout))
        wandb.termsetup(setup.settings, wandb_log)
        return wandb

    def _wanted_mode(self) -> str:
        mode = os.environ.get("WANDB_MODE", self._mode) if self._mode == "auto" else self._mode
        if mode not in MODES:
            raise ValueError(f"WANDB_MODE must be one of {', '.join(MODES)}, got {mode!r}")
        return mode

    def _has_api_key(self) -> bool:
        wandb = self._load_wandb()
        try:
            from wandb.sdk.lib.wbauth import authenticate_session

            host = wandb.setup().settings.base_url
            found = authenticate_session(host=host, source="vae_lab", prompt=False, update_session=False)
            return found is not None
        except wandb.errors.AuthenticationError:
            return True  # malformed; wandb.init will say what is wrong with it
        except (ImportError, TypeError):  # private, so it may move; then only the environment is asked
            return bool(os.environ.get("WANDB_API_KEY"))


def _at(step: int | None) -> dict[str, int]:
    return {} if step is None else {"step": step}


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split()) or type(error).__name__)
