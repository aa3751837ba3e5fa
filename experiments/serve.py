"""`python -m experiments.serve checkpoint=RUN port=8000`: embeddings and nearest classes of images, over HTTP.

`POST /predict` takes images in base64, `GET /health` says whether the model is ready, and `GET /` is a page that
compares two photos. It needs `pip install -e '.[serve]'`.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.serve")
    from .command_line.arguments import check_or_exit

    check_or_exit("serve")


import os
import signal
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from data.options import absolute, several

from .cli import command, needed
from .models.backbone import check_precision
from .serving.predictor import trained_on_images

PAGE = Path(__file__).with_name("serving") / "page.html"


def serve(config: DictConfig, folder: Path) -> None:
    """Serve until the process is interrupted.

    Raises:
        ValueError: an option does not fit, or the checkpoint cannot be used.
    """
    try:
        import litserve
        from fastapi.responses import HTMLResponse
        from starlette.middleware.base import BaseHTTPMiddleware

        from .serving.service import Service, Settings, refuse_malformed
    except ImportError as error:
        raise ValueError(f"experiments.serve needs its library ({error}); pip install -e '.[serve]'") from None
    needed(config, "checkpoint")
    check_precision(config.precision)
    # Errors are reported here, before the processes of the server start.
    print(trained_on_images(config.checkpoint, several(config.trust)), flush=True)
    service = Service(
        Settings(
            checkpoint=config.checkpoint,
            trust=several(config.trust),
            accelerator=config.accelerator,
            precision=config.precision,
            gallery=None if config.gallery is None else absolute(str(config.gallery)),
            top=config.top,
            max_images=config.max_images,
        ),
        max_batch_size=config.batch_requests,
        batch_timeout=config.wait_ms / 1000,
    )
    server = litserve.LitServer(
        service,
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        max_payload_size=int(config.max_mb * 2**20),
        middlewares=[(BaseHTTPMiddleware, {"dispatch": refuse_malformed})],
    )
    end_together()
    page = PAGE.read_text()
    # LitServe has a page of its own there, which says that it runs.
    server.app.router.routes[:] = [route for route in server.app.routes if getattr(route, "path", None) != "/"]
    server.app.get("/", response_class=HTMLResponse)(lambda: page)
    print(f"http://{config.host}:{config.port}/", flush=True)
    server.run(host=config.host, port=config.port, num_api_servers=1, generate_client_file=False, log_level="warning")


def end_together() -> None:
    """Let Ctrl-C and SIGTERM end the server and all of its processes, without tracebacks."""
    parent = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt if os.getpid() == parent else SystemExit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


if __name__ == "__main__":
    command("serve", serve)
