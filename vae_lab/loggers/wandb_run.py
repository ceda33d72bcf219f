"""A run of W&B, as its own process sees it: started online or offline, filled, and asked what went wrong."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int, str], None]


class Complaints(logging.Handler):
    """What W&B warns of, in its own words."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.log = logging.Logger("wandb")
        self.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(" ".join(re.sub(r"wandb: (WARNING|ERROR)?", "", record.getMessage()).split()))


def start_run(report: Report, complaints: Complaints, settings: dict[str, Any]) -> Any:
    """Start the W&B run: online if that is wanted and works, else offline.

    Args:
        report: tells the run what happened.
        complaints: of W&B.
        settings: see `init_run`; the mode may also be "auto": online if there is an API key.

    Returns:
        The `wandb.Run`, or None if there is none.
    """
    mode, failures = settings["mode"], []
    try:
        if mode == "auto":
            mode = "online" if has_api_key(complaints) else "offline"
            failures += complaints.texts  # as about an unreadable ~/.netrc
        if mode == "online":
            run = init_run(complaints, {**settings, "mode": "online"})
            report(logging.INFO, f"W&B: {run.url}")
            return run
    except Exception as error:  # W&B raises all kinds
        failures.append(reason(error))
    for prepare in (lambda: None, forget_settings):
        prepare()
        try:
            run = init_run(complaints, {**settings, "mode": "offline"})
            break
        except Exception as error:
            failures.append(reason(error))
    else:
        report(logging.WARNING, f"W&B does not start, this run is not tracked: {failures[0]}")
        return None
    complaints.texts.clear()
    upload = f"offline, upload with: wandb sync {run.settings.sync_dir}"
    if failures:
        report(logging.WARNING, f"W&B: {failures[0]}; tracking {upload}")
    else:
        report(logging.INFO, f"W&B: {upload}")
    return run


def init_run(complaints: Complaints, settings: dict[str, Any]) -> Any:
    """Start the W&B run, online or offline.

    Args:
        complaints: of W&B.
        settings: mode ("online" or "offline"), folder (for `wandb/`), run_id (one that exists is continued), name,
            labels (project, entity, group, job_type, tags), init_timeout and upload_timeout (seconds).

    Raises:
        Exception: of any kind, as W&B does.
    """
    import wandb

    own = Path(settings["folder"]) / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    if not os.access(own, os.W_OK):  # W&B would write to /tmp instead
        raise PermissionError(f"{own} is not writable")
    setup(complaints)
    try:
        run = wandb.init(
            dir=settings["folder"],
            id=settings["run_id"],
            resume="allow",
            name=settings["name"],
            mode=settings["mode"],
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=settings["init_timeout"],
                finish_timeout=settings["upload_timeout"],
                finish_timeout_raises=True,
                console="off",  # train.log has it, without secrets
                x_disable_meta=True,  # would store the environment
                x_stats_pid=os.getppid(),  # the run's load, not this process's
                disable_git=True,
                save_code=False,
                symlink=False,
            ),
            **settings["labels"],
        )
    except Exception:
        wandb.teardown()  # else the failed attempt keeps the run id in use
        raise
    run.define_metric("*", step_metric="step")
    return run


def carry_out(run: Any, order: str, value: Any) -> None:
    """Store a config, values of a step, a PNG or GIF file or final values."""
    import wandb

    match order:
        case "config":
            run.config.update(value, allow_val_change=True)
        case "metrics":
            run.log(value)
        case "picture":
            key, path, step = value
            picture = wandb.Video(path, format="gif") if path.endswith(".gif") else wandb.Image(path)
            run.log({key: picture, "step": step})
        case "summary":
            run.summary.update(value)


def has_api_key(complaints: Complaints) -> bool:
    """Whether W&B finds credentials in the environment, in ~/.netrc or in its settings; malformed ones count too."""
    import wandb

    host = setup(complaints).settings.base_url
    try:
        from wandb.sdk.lib.wbauth import authenticate_session

        return authenticate_session(host=host, source="vae_lab", prompt=False, update_session=False) is not None
    except wandb.errors.AuthenticationError:
        return True  # wandb.init will say what is wrong with them
    except (ImportError, TypeError):  # private, so it may move; then only the environment is asked
        return bool(os.environ.get("WANDB_API_KEY"))


def setup(complaints: Complaints) -> Any:
    """W&B's global state; silent, because otherwise it asks the server who is logged in, only to print it."""
    import wandb

    silent = wandb.Settings(silent=True)
    wandb.termsetup(silent, complaints.log)
    state = wandb.setup(silent)
    wandb.termsetup(silent, complaints.log)  # the setup has undone it
    return state


def variables() -> list[str]:
    """The names of the variables for W&B in the environment."""
    return sorted(name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING")


def forget_settings() -> None:
    """Make W&B start as if nobody had set anything: one of the settings is what is wrong, and offline needs none."""
    for name in variables():
        del os.environ[name]
    os.environ["WANDB_CONFIG_DIR"] = os.devnull


def errors_logged(run: Any) -> list[str]:
    """Errors that W&B tells nobody but its log: a full disk, a server that answers with something else."""
    path = Path(run.settings.log_internal)
    text = path.read_text(errors="replace") if path.is_file() else ""
    return re.findall(r'"level":"ERROR","msg":"(?!monitor)((?:[^"\\]|\\.)*)"', text)


def reason(error: Exception) -> str:
    """What an exception says, on one line; of a wrong setting not its value, which may be a secret."""
    if hasattr(error, "errors"):  # pydantic's
        text = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return f"{text} (check {', '.join(variables())})" if variables() else text
    return " ".join(str(error).split()) or type(error).__name__
