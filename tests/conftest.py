"""What all tests share: no network, no accelerator (but for `make test-gpu`), one thread."""

from __future__ import annotations

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("EDGEKIT_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Results are compared to the bit, also with those of processes that a test starts; torch reads this at its import.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell's background job ignores interrupts, and so would each process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
