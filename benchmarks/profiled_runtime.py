"""onnxruntime with its profiler on, for edgekit's harness: the measuring process finds it by module and class.

The profile is written beside the model's directory when the process ends.
"""

from __future__ import annotations

import atexit

from edgekit.runtimes.onnxruntime_runtime import OnnxRuntime, OnnxSession, open_file, session_options
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

PREFIX = "profile"


class ProfiledOnnxRuntime(OnnxRuntime):
    """The runtime `onnxruntime`, which keeps its own time of every call."""

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session on the CPU whose profile is written when the process ends."""
        options = session_options(config)
        options.enable_profiling = True
        options.profile_file_prefix = str(model.path.with_name(PREFIX))
        session = open_file(model_file(model), options)
        atexit.register(session.end_profiling)
        return OnnxSession(session)
