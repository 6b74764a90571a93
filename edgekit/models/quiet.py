"""Keeps transformers from printing, warning and drawing bars while edgekit loads or saves; restores its settings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OTHERS = ("torchao", "torchao.kernel", "torch.utils._pytree")
"""Loggers of what transformers imports where it is there: torchao tells of kernels for GPUs that it did not find."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers inside the `with` block; what matters is checked by edgekit and raised as an error."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    others = {logger: logger.level for logger in map(logging.getLogger, _OTHERS)}
    for logger in others:
        logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
            for logger, level in others.items():
                logger.setLevel(level)
