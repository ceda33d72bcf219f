import os
import platform
import subprocess
import sys

import pytest
import torch

from vae_lab.runs.process import keep_memory

PROGRAM = """
import atexit, sys, threading, time
from vae_lab.runs.process import as_process

class Left:
    def __del__(self):
        print("taken apart")

def work():
    left = Left()
    left.itself, left.file = left, open("left.txt", "w")
    left.file.write("written")
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    sys.exit(7)

def command():
    as_process(work)

kept = Left()
kept.itself = kept
command()
"""


@pytest.mark.parametrize("profiled", [False, True])
def test_a_process_ends_when_all_is_done_and_before_what_stays_is_taken_apart(tmp_path, profiled):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, *(["-m", "cProfile"] if profiled else []), program]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=tmp_path, env=buffered, capture_output=True, text=True)
    assert done.stderr == ""
    if profiled:  # which has its say, and ends as Python does
        assert "function calls" in done.stdout
    else:
        assert done.returncode == 7
        assert done.stdout.splitlines() == ["thread", "at exit", "taken apart"]
        assert (tmp_path / "left.txt").read_text() == "written"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have settings of their own")
def test_memory_is_kept_from_step_to_step():
    import resource  # which Windows lacks

    def faults_of_a_step() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        activations = [torch.ones(2**22) for _ in range(4)]  # of 16 MB, which are freed all at once
        del activations
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    keep_memory()
    assert min(faults_of_a_step() for _ in range(20)) < 1000  # of 16,384 pages
