"""Skips tests that need llama.cpp where it is missing, with the reason that a user would read."""

import pytest

from edgekit.runtimes.llama_cpp_library import missing_reason

REASON = missing_reason()
needs_llama_cpp = pytest.mark.skipif(REASON is not None, reason=REASON or "")
