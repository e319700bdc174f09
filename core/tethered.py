"""Run a module like `python -m`, and stop when the parent process ends: even a killed parent leaves no server behind.

The parent holds the other end of this process's stdin, and never writes to it.
"""

import os
import runpy
import signal
import sys
import threading


def _stop_at_the_end_of_input() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_at_the_end_of_input, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
