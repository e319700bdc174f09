"""Lower bound: decoding and onnxruntime behind an HTTP server that does nothing else."""

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.peers.model import Model, from_command_line


def create_app(model: Model) -> Starlette:
    """Make the app. /classify takes the bytes of an image."""

    async def classify(request: Request) -> JSONResponse:
        return JSONResponse(await anyio.to_thread.run_sync(model.classify, await request.body()))

    return Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/ready", lambda _: JSONResponse("ready")),
        ]
    )


if __name__ == "__main__":
    folder, port = from_command_line()
    uvicorn.run(create_app(Model(folder)), port=port, access_log=False, log_level="warning")
