"""LitServe as in its documentation: an uploaded file, and one worker on the CPU."""

from pathlib import Path
from typing import Any

import litserve

from benchmarks.peers.model import Model, from_command_line


class Api(litserve.LitAPI):
    """API with one model."""

    def __init__(self, folder: Path) -> None:
        """Serve the model in `folder`."""
        super().__init__(api_path="/classify")
        self._folder = folder

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        del device
        self._model = Model(self._folder)

    def decode_request(self, request) -> bytes:  # noqa: ANN001 - LitServe would have FastAPI check the annotation
        """Read the file from the form."""
        return request["image"].file.read()  # type: ignore[no-any-return]

    def predict(self, x: bytes) -> dict[str, Any]:
        """Classify the file."""
        return self._model.classify(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer unchanged."""
        return output


if __name__ == "__main__":
    folder, port = from_command_line()
    server = litserve.LitServer(Api(folder), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
