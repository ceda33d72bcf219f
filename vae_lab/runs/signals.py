"""The signals that ask a process to stop."""

import signal

# What schedulers, a closed terminal and Ctrl-C send before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)


def heeded() -> list[signal.Signals]:
    """Those that this process heeds: all, but for SIGHUP under nohup."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if not (number == signal.SIGHUP and ignores_hangup)]
