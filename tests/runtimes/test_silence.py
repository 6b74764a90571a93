"""Nothing reaches the terminal inside the block, everything after it, from any thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from edgekit.runtimes.silence import silent_stderr


def test_what_is_written_inside_is_gone_and_what_is_written_after_is_there(capfd):
    with silent_stderr(), silent_stderr():
        os.write(2, b"inside")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_threads_leave_it_as_it_was(capfd):
    def hush() -> None:
        for _ in range(50):
            with silent_stderr():
                os.write(2, b"inside")

    threads = [threading.Thread(target=hush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_a_process_without_standard_error_is_let_be():
    program = """
import os, sys
os.close(2)
sys.stderr = None
from edgekit.runtimes.silence import silent_stderr
with silent_stderr():
    print("ran")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "ran\n"
