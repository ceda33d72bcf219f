"""A machine without what only POSIX has, as our modules see it: `python -m windows main seed=1 then main resume=X`.

What our code imports lacks the modules, functions and signals that Windows has not, and processes are spawned, never
forked. Other packages see the machine as it is: they have their own code for Windows. A spawned process imports this
module as its main module, so it is on the same machine. Modules and signals that are missing cannot show everything
that differs there; that is for the Windows job of the GitHub workflow.
"""

import builtins
import multiprocessing
import multiprocessing.context
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from command import finish, start

OURS = ("vae_lab", "hydra_plugins")
MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty")
SIGNALS = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN")  # those there are
FUNCTIONS = {
    "signal": """
        alarm pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait sigwaitinfo sigtimedwait
    """,
    "os": """
        chown chroot fork forkpty getegid geteuid getgid getgroups getpgid getpgrp getpriority getsid getuid killpg
        lchown lockf mkfifo mknod nice openpty posix_fadvise posix_fallocate pread preadv pwrite pwritev
        register_at_fork sched_getaffinity sched_setaffinity sendfile setegid seteuid setgid setpgid setpriority
        setsid setuid statvfs sync sysconf tcgetpgrp tcsetpgrp uname wait wait3 wait4 waitid EX_OK WEXITSTATUS
        WIFEXITED WIFSIGNALED WNOHANG WTERMSIG O_CLOEXEC O_DIRECTORY O_DSYNC O_NOFOLLOW O_NONBLOCK O_SYNC
    """,
    "time": "clock_gettime tzset",
}


def on_windows(*commands: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Run some of our commands, one after the other, on such a machine; each begins with its function in `__main__`."""
    arguments = [word for command in commands for word in (*command, "then")][:-1]
    return finish(start(*arguments, cwd=cwd, module="windows", env={"PYTHONPATH": str(Path(__file__).parent)}))


def open_file(path, flags, mode=0o777, **kwargs):
    """`os.open`, which opens no folder there."""
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, mode, **kwargs)


def kill(pid: int, number: int) -> None:
    """`os.kill`, which ends a process whatever the signal is, also for 0."""
    assert number, "on Windows os.kill(pid, 0) ends the process"
    os.kill(pid, number)


def without(module: ModuleType) -> ModuleType:
    """A copy of a module without what Windows has not."""
    missing = set(FUNCTIONS[module.__name__].split())
    if module is signal:
        missing |= {key for key in vars(module) if key.startswith("SIG") and key not in SIGNALS}
    copy = ModuleType(module.__name__)
    vars(copy).update({key: value for key, value in vars(module).items() if key not in missing})
    if module is os:
        copy.name, copy.open, copy.kill = "nt", open_file, kill
    return copy


def leave_posix() -> None:
    """Hide from our modules what Windows has not, and spawn processes."""
    original = builtins.__import__
    copies = {name: without(__import__(name)) for name in FUNCTIONS}

    def import_module(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and (globals or {}).get("__name__", "").split(".")[0] in OURS:
            if name.split(".")[0] in MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in copies:
                return copies[name]
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = import_module
    for method in ("fork", "forkserver"):
        multiprocessing.context._concrete_contexts.pop(method, None)
    multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]
    multiprocessing.set_start_method("spawn", force=True)
    exec("import os, signal; assert not hasattr(os, 'fork') and not hasattr(signal, 'SIGHUP')", {"__name__": OURS[0]})


if __name__ in ("__main__", "__mp_main__"):
    leave_posix()
if __name__ == "__main__":
    from vae_lab import __main__ as commands

    words = sys.argv[1:]
    while words:
        end = words.index("then") if "then" in words else len(words)
        sys.argv[1:] = words[1:end]
        getattr(commands, words[0])()
        words = words[end + 1 :]
