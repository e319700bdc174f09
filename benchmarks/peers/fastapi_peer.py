"""FastAPI as in its documentation: an uploaded file, and a function that FastAPI runs in its thread pool."""

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.model import Model, from_command_line


def create_app(model: Model) -> FastAPI:
    """Make the app."""
    app = FastAPI()

    @app.post("/classify")
    def classify(image: UploadFile) -> dict[str, Any]:
        return model.classify(image.file.read())

    return app


if __name__ == "__main__":
    folder, port = from_command_line()
    uvicorn.run(create_app(Model(folder)), port=port, access_log=False, log_level="warning")
