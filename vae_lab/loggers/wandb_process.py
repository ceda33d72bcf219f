"""The process that talks to W&B, so that nothing W&B does, or fails to do, reaches the training.

`WandbProcess` is how the run sees it: telling it something never waits. `Worker` is what happens in there: it starts,
fills and finishes one run after the other, until the one who gives the orders is gone. Where that one was killed, what
it had told is still stored.
"""

import atexit
import json
import logging
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from vae_lab.config.secrets import redact
from vae_lab.errors import one_line
from vae_lab.runs.signals import SIGNALS

log = logging.getLogger(__name__)

FINISH_TIMEOUT = 10  # seconds for W&B at the end of a run
UPLOAD_TIMEOUT = 8  # of them for what was not uploaded yet

# Settled by the config and the run folder; what a shell has set for other programs means nothing here.
SETTLED = (
    "MODE", "DISABLED", "SERVICE", "DIR", "RUN_ID", "RESUME", "NAME", "PROJECT", "SILENT", "QUIET", "CONSOLE",
    "SYMLINK", "SAVE_CODE", "DISABLE_GIT", "INIT_TIMEOUT", "FINISH_TIMEOUT", "_SERVICE_WAIT",
)  # fmt: skip
# Variables that hold paths, which may start from the current folder.
FILES = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_IDENTITY_TOKEN_FILE")


# --- as the run sees it


def obstacle(timeout: float) -> str | None:
    """What keeps a run from being online, such as no API key; no connection is made.

    Args:
        timeout: seconds, after which there is no answer, > 0.
    """
    process = WandbProcess()
    process.begin("check", None, timeout)
    reason = next((text for _, text in process.reports(timeout)), None)
    process.close(0)
    return reason


class WandbProcess:
    """W&B for one run after the other; it ends with `close`, or with this process.

    Raises:
        OSError: if no process can be started.
    """

    def __init__(self):
        self.is_over = True  # no run, or none that anything could be told of
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        context = multiprocessing.get_context("spawn")
        taken, given = context.Pipe(duplex=False)
        self._reports, told = context.Pipe(duplex=False)
        self._process = context.Process(target=main, args=(taken, told), name="wandb", daemon=True)
        with taken, told, apart():
            self._process.start()
        threading.Thread(target=feed, args=(self._orders, given), daemon=True).start()
        atexit.register(self.close)  # else multiprocessing would wait for it there

    def begin(self, order: str, value: Any, patience: float) -> None:
        """Give the first order of a run, "start", or of none, "check".

        Args:
            order: "start" or "check".
            value: of "start": mode ("online", "offline", or "auto": online if there is an API key), folder (for
                `wandb/`), run_id (one that exists is continued), name, labels (project, entity, group, job_type, tags),
                init_timeout and upload_timeout (seconds).
            patience: seconds until W&B should have started, > 0.
        """
        self.is_over = self._has_reported = False
        self._start_deadline = time.monotonic() + patience
        self.send(order, value)

    def send(self, order: str, value: Any) -> None:
        """Give a further order, see `carry_out`, and log what there is to report."""
        self._orders.put(json.dumps([order, value], default=str).encode())
        self._log_reports(0)

    def finish(self, exit_code: int) -> None:
        """Wait until everything is stored, for `FINISH_TIMEOUT` seconds from when W&B has, or should have, started."""
        try:
            self.send("finish", exit_code)
            start = 0 if self._has_reported else self._start_deadline - time.monotonic()
            self._log_reports(max(0, start) + FINISH_TIMEOUT)
            if not self.is_over and self._has_reported:
                log.warning("W&B does not finish; what it has stored is in the run folder, see wandb sync")
            elif not self.is_over:
                log.warning("W&B does not start, this run is not tracked: it gives no sign, try to reinstall wandb")
        finally:
            if not self.is_over:
                self.close(0)

    def reports(self, timeout: float) -> Iterator[tuple[int, str]]:
        """Level and text of each report until the run is over, or for so many seconds."""
        deadline = time.monotonic() + timeout
        try:
            while not self.is_over and self._reports.poll(max(0, deadline - time.monotonic())):
                match self._reports.recv():
                    case None:
                        self.is_over = True
                    case level, text:
                        self._has_reported = True
                        yield level, redact(text)
        except (EOFError, OSError):
            self.is_over = True
            yield logging.WARNING, "W&B tracking ends here, the run goes on: its process died"

    def _log_reports(self, timeout: float) -> None:
        for level, text in self.reports(timeout):
            log.log(level, "%s", text)

    def close(self, timeout: float = FINISH_TIMEOUT) -> None:
        """Let the process end, and kill it with all that it has started if it does not.

        Args:
            timeout: seconds that it has to store what it was told, >= 0.
        """
        atexit.unregister(self.close)
        self.is_over = True
        self._orders.put(None)
        self._process.join(timeout)
        if self._process.is_alive():
            kill(self._process.pid)
            self._process.join(1)


def feed(orders: queue.SimpleQueue, pipe: Connection) -> None:
    """Send orders for as long as there are any and somebody takes them: what waits is a thread, not the training."""
    with pipe, suppress(OSError):
        while (order := orders.get()) is not None:
            pipe.send_bytes(order)


def kill(pid: int) -> None:
    """End a process, and those that it has started, at once."""
    import psutil  # only here: the process itself is to start quickly

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def apart() -> Iterator[None]:
    """Start a process that has nothing of this one: no code of its main module or folder, no signals."""
    has_mask = hasattr(signal, "pthread_sigmask")
    main_module, safe_path = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    sys.modules["__main__"] = ModuleType("__main__")  # spawn would run a user's script again
    os.environ["PYTHONSAFEPATH"] = "1"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if has_mask else ()
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
        if has_mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- in the process


def main(orders: Connection, reports: Connection) -> None:
    """Leave the run's terminal, signals and folder, and be at its service.

    W&B would obey `wandb/settings` in the current folder, which may be a stranger's, and send the API key to the server
    named there.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the run decides when this ends
    if hasattr(os, "setsid"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # nothing is asked, and what W&B prints goes nowhere
        os.dup2(nowhere, stream)
    for name in SETTLED:
        os.environ.pop(f"WANDB_{name}", None)
    for name in filter(os.environ.get, FILES):
        os.environ[name] = os.path.abspath(os.environ[name])
    # W&B's telemetry goes to the same server: against one that hangs, it delays the end by 20 seconds.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    sys.argv[:], sys.path[:] = [""], map(os.path.abspath, sys.path)
    os.chdir("/")
    Worker(orders, reports).serve()
    os._exit(0)  # W&B was given its time to end


class Worker:
    """Does what it is told with W&B.

    Args:
        orders: gives JSON lists [order, value].
        reports: takes level and text of what the run should log, and None when a run, or a check, is over.
    """

    def __init__(self, orders: Connection, reports: Connection):
        self.pipe, self.reports = orders, reports
        self.orders: queue.SimpleQueue = queue.SimpleQueue()
        self.problems: list[str] = []  # of the present run; only the first is reported: the others follow from it
        self.has_reported = False
        complaints = logging.Handler(logging.WARNING)
        complaints.emit = lambda record: self.problems.append(plain(record.getMessage()))
        self.log = logging.Logger("wandb")
        self.log.addHandler(complaints)

    def serve(self) -> None:
        """Obey until the one who gives the orders is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while order := self.orders.get():
            match order:
                case "check", _:
                    self._check()
                    self._report(None)
                case "start", settings:
                    self.problems, self.has_reported = [], False
                    if run := self._start(settings):
                        self._fill(run)
                    self._report(None)
        if "wandb" in sys.modules:
            with suppress(Exception):  # its own process has died
                sys.modules["wandb"].teardown()

    def _listen(self) -> None:
        """Queue the orders while W&B is busy; when they end, be patient with it, and then end all the same."""
        patience = 1.0
        with suppress(EOFError, OSError):
            while True:
                order, value = json.loads(self.pipe.recv_bytes())
                self.orders.put((order, value))
                if order == "start":
                    patience = value["init_timeout"] + value["upload_timeout"]
        self.orders.put(("finish", 1))
        self.orders.put(None)
        time.sleep(patience)
        os._exit(1)

    def _report(self, what: tuple[int, str] | None) -> None:
        with suppress(OSError):  # the run is gone
            self.reports.send(what)

    def _check(self) -> None:
        try:
            if not self._has_api_key():
                text = "no API key; set WANDB_API_KEY, run `wandb login` or use logger.wandb.mode=auto"
                self._report((logging.ERROR, text))
        except Exception as error:  # W&B raises all kinds for a broken environment
            self._report((logging.ERROR, reason(error)))

    def _start(self, settings: dict[str, Any]) -> Any:
        """Start the W&B run: online if that is wanted and works, else offline, at last without any settings."""
        mode, failures = settings["mode"], []
        for attempt in range(3):
            try:
                if mode == "auto":
                    mode = "online" if self._has_api_key() else "offline"
                    failures += self.problems  # as about an unreadable ~/.netrc
                run = self._init(settings, mode)
                break
            except Exception as error:  # W&B raises all kinds
                failures.append(reason(error))
            mode = "offline"
            if attempt == 1:  # one of the settings is what is wrong, and offline needs none
                for name in variables():
                    del os.environ[name]
                os.environ["WANDB_CONFIG_DIR"] = os.devnull
        else:
            self._report((logging.WARNING, f"W&B does not start, this run is not tracked: {failures[0]}"))
            return None
        if mode == "online":
            self._report((logging.INFO, f"W&B: {run.url}"))
            return run
        self.problems.clear()
        upload = f"offline, upload with: wandb sync {run.settings.sync_dir}"
        if failures:
            self._report((logging.WARNING, f"W&B: {failures[0]}; tracking {upload}"))
        else:
            self._report((logging.INFO, f"W&B: {upload}"))
        return run

    def _init(self, settings: dict[str, Any], mode: str) -> Any:
        import wandb

        own = Path(settings["folder"]) / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        if not os.access(own, os.W_OK):  # W&B would write to /tmp instead
            raise PermissionError(f"{own} is not writable")
        self._setup()
        try:
            run = wandb.init(
                dir=settings["folder"],
                id=settings["run_id"],
                resume="allow",
                name=settings["name"],
                mode=mode,
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

    def _fill(self, run: Any) -> None:
        """Store what comes until the order "finish"; what fails is the last of it, but the run is still finished."""
        has_failed = False
        while (order := self.orders.get())[0] != "finish":
            try:
                if not has_failed:
                    carry_out(run, *order)
            except Exception as error:
                has_failed = True
                self.problems.append(f"tracking ends here, the run goes on: {reason(error)}")
            self._report_problem(run)
        try:
            run.finish(exit_code=order[1])
        except Exception as error:
            self.problems.append(reason(error))
        # Some errors W&B tells nobody but its log: a full disk, a server that answers with something else.
        path = Path(run.settings.log_internal)
        text = path.read_text(errors="replace") if path.is_file() else ""
        self.problems += re.findall(r'"level":"ERROR","msg":"(?!monitor)((?:[^"\\]|\\.)*)"', text)
        self._report_problem(run)

    def _report_problem(self, run: Any) -> None:
        if self.problems and not self.has_reported:
            self.has_reported = True
            rest = f"upload the rest with: wandb sync {run.settings.sync_dir}"
            self._report((logging.WARNING, f"W&B: {self.problems[0].rstrip('.')}; {rest}"))

    def _has_api_key(self) -> bool:
        """Whether W&B finds credentials: in the environment, ~/.netrc or its settings; malformed ones count too."""
        import wandb

        host = self._setup().settings.base_url
        try:
            from wandb.sdk.lib.wbauth import authenticate_session

            return authenticate_session(host=host, source="vae_lab", prompt=False, update_session=False) is not None
        except wandb.errors.AuthenticationError:
            return True  # wandb.init will say what is wrong with them
        except (ImportError, TypeError):  # private, so it may move; then only the environment is asked
            return bool(os.environ.get("WANDB_API_KEY"))

    def _setup(self) -> Any:
        """W&B's global state; silent, because otherwise it asks the server who is logged in, only to print it."""
        import wandb

        silent = wandb.Settings(silent=True)
        wandb.termsetup(silent, self.log)
        state = wandb.setup(silent)
        wandb.termsetup(silent, self.log)  # the setup has undone it
        return state


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


def plain(text: str) -> str:
    """What W&B says, on one line."""
    return " ".join(re.sub(r"wandb: (WARNING|ERROR)?", "", text).split())


def variables() -> list[str]:
    """The names of the variables for W&B in the environment."""
    return sorted(name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING")


def reason(error: Exception) -> str:
    """What an exception says, on one line; of a wrong setting not its value, which may be a secret."""
    if not hasattr(error, "errors"):
        return one_line(error)
    text = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())  # pydantic's
    return f"{text} (check {', '.join(variables())})" if variables() else text
