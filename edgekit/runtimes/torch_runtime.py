"""Runs model artifacts in torch: the reference that exports are checked against, and a baseline for their speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig

if TYPE_CHECKING:
    from numpy import ndarray
    from transformers import PreTrainedModel


class TorchRuntime:
    """The runtime `torch`; `graph_optimization` has no meaning here, for nothing is compiled."""

    name = "torch"
    formats: tuple[str, ...] = ("model",)
    libraries: tuple[str, ...] = ("numpy", "torch", "transformers", "edgekit.models.source")

    def unavailable_reason(self) -> str | None:
        """Returns None when torch and transformers are installed, else how to install them."""
        from importlib.util import find_spec

        missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
        if not missing:
            return None
        return f"the package '{missing[0]}' is not installed. Install it: {install_command('train')}"

    def version(self) -> str:
        """Returns the version of the installed torch."""
        from importlib.metadata import version

        return version("torch")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session that runs the model eagerly, in inference mode.

        Raises:
            ModelError: the model cannot be loaded.
        """
        from edgekit.artifact import Artifact
        from edgekit.models.source import load_model

        artifact = model if isinstance(model, Artifact) else Artifact.open(model.path, verify=False)
        loaded = load_model(artifact)
        takes_segments = "token_type_ids" in loaded.tokenizer.model_input_names
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_segments else [])]
        return TorchSession(loaded.model, names, config.threads)


class TorchSession:
    """A torch model, loaded."""

    def __init__(self, network: PreTrainedModel, input_names: list[str], threads: int) -> None:
        """Keeps the network; `threads` holds during its own calls only, for torch's setting is the process's."""
        self._network = network.eval()
        self._threads = threads
        self.input_names = input_names
        self.output_names = ["logits"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once and returns float32 logits."""
        import torch

        from edgekit.models.threads import torch_threads

        with torch_threads(self._threads), torch.inference_mode():
            feeds = {name: torch.from_numpy(inputs[name]) for name in self.input_names}
            logits = self._network(**feeds).logits
            return {"logits": logits.float().numpy()}
