"""The page's server: on loopback, for this machine's own browsers, serving no file but those of its own folder."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salcap.captioners.registry import check_captioner
from salcap.demo.models import Models
from salcap.demo.page import Page
from salcap.devices import check_device
from salcap.saliency import check_saliency

HOST = "127.0.0.1"
MAX_UPLOAD_MB = 200
_OWN_HOSTS = (HOST, "localhost")
# nothing of the page comes from elsewhere; gradio's own scripts stand in the page and compile templates
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:;"
    " object-src 'none'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
_STYLES, _SCRIPT = (Path(__file__).with_name(name) for name in ("page.css", "page.js"))


@contextmanager
def serve(
    videos: Sequence[str] = (),
    models: Sequence[str] = (),
    saliency: Sequence[str] = (),
    *,
    device: str | None = None,
    port: int | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
) -> Iterator[str]:
    """Serve the page as long as the context lasts; gives its address.

    Args:
        videos: files to pick from on the page; one that is picked is copied.
        models: captioners to choose from beside the bundled ones: hub ids or folders.
        saliency: backbones beside the registered ones, as `create_saliency` takes them.
        device: see `Models`.
        port: None: the first free one from 7860 on.

    Raises:
        ImportError: gradio is not installed.
        OSError: the port is taken.
        ValueError: a video that is no file; a captioner, backbone or device that there is not.
    """
    for video in videos:
        if not Path(video).is_file():
            raise ValueError(f"the page takes files of videos, got {video!r}: there is no such file")
    check_device(device)
    for name in models:
        check_captioner(name)
    for name in saliency:
        check_saliency(name)
    if port is not None:
        _check_port(port)
    with tempfile.TemporaryDirectory(prefix="salcap-demo-") as folder:
        own = str(Path(folder).resolve())
        # before gradio's import: where its files go, and that it asks no server for its newest version
        with _environment(
            GRADIO_TEMP_DIR=own,
            GRADIO_EXAMPLES_CACHE=own,
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        ):
            gradio, middleware = _import_gradio()
            page = Page(gradio, Path(own), Models(device), videos, models, saliency)
            blocks = page.build()
            _, address, _ = blocks.queue(max_size=16).launch(
                server_name=HOST,
                server_port=port,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                max_file_size=max_upload_mb * 2**20,
                theme=_theme(gradio),
                css_paths=_STYLES,
                head=f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>",
                app_kwargs={"middleware": middleware},
            )
            try:
                yield address
            finally:
                blocks.close(verbose=False)
                page.close()


class OwnPagesOnly:
    """ASGI middleware: refuses requests that other pages send, and to fetch what is elsewhere.

    A page of another port of this machine is another page. The host itself is another middleware's to check.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin, host = (dict(scope["headers"]).get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
        if (origin and origin.partition("://")[2] != host) or re.search(r"/(file|proxy)=\w+:", scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"refused: not of this page\n"})
            return

        async def send_with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(event)

        await self._app(scope, receive, send_with_policy)


def _import_gradio() -> tuple[Any, list[Any]]:
    """gradio, and what stands in front of its pages."""
    try:
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ModuleNotFoundError as error:
        raise ImportError("the demo page needs gradio: pip install 'salcap[demo]'") from error
    return gradio, [Middleware(TrustedHostMiddleware, allowed_hosts=[*_OWN_HOSTS]), Middleware(OwnPagesOnly)]


def _theme(gradio: Any) -> Any:
    """The system's own fonts, and words dark enough to be read by all."""
    sans, mono = (gradio.themes.Font(name) for name in ("system-ui", "ui-monospace"))
    theme = gradio.themes.Default(primary_hue="blue", font=[sans, "sans-serif"], font_mono=[mono, "monospace"])
    button = {"background_fill": "*primary_600", "background_fill_hover": "*primary_700", "text_color": "white"}
    colours = {f"button_primary_{name}": value for name, value in button.items()}
    light = {**colours, "body_text_color_subdued": "*neutral_600", "block_title_text_color": "*neutral_700"}
    dark = {**colours, "body_text_color_subdued": "*neutral_300", "block_title_text_color": "*neutral_200"}
    return theme.set(**light, **{f"{name}_dark": value for name, value in dark.items()})


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"port {port} cannot be had: {error.strerror}; give another one with --port, or none for the first free"
                " one from 7860"
            ) from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Of gradio's variables these alone: others may serve more files, or rewrite the program from the page."""
    before = {name: value for name, value in os.environ.items() if name in values or name.startswith("GRADIO_")}
    for name in before:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
