"""Server of the report page of a running search, on the loopback address: `sweepcp watch`."""

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from sweepcp.errors import InvalidInput
from sweepcp.report.page import render_page
from sweepcp.report.sections import progress_text
from sweepcp.report.views import RunView, load_run
from sweepcp.util.json_values import digest

logger = logging.getLogger(__name__)
ADDRESS = "127.0.0.1"


class WatchedRun:
    """A run folder that is read at every request, by one request at a time.

    Raises:
        InvalidInput: The folder is no run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rendered: tuple[str, str] = ("", "")
        load_run(path)

    def status(self) -> dict[str, str]:
        """Return the progress of the search, and the stamp of the current page."""
        with self._lock:
            run = load_run(self.path)
            return {"stamp": _stamp(run), "progress": progress_text(run)}

    def page(self) -> str:
        """Return the current page; it is rendered again only if its stamp has changed."""
        with self._lock:
            run = load_run(self.path)
            stamp = _stamp(run)
            if self._rendered[0] != stamp:
                self._rendered = (stamp, render_page(run, stamp))
            return self._rendered[1]


class PageHandler(BaseHTTPRequestHandler):
    """Serves the page at `/` and the status of the search at `/now`."""

    watched: WatchedRun

    def do_GET(self) -> None:
        """Answer a request."""
        # A page of another site can make the browser send requests here (DNS rebinding), but not
        # with this host's name.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (ADDRESS, "localhost"):
            self.send_error(
                HTTPStatus.FORBIDDEN, "only the machine that serves this page may read it"
            )
        elif self.path == "/":
            self._send("text/html", self.watched.page)
        elif self.path == "/now":
            self._send("application/json", lambda: json.dumps(self.watched.status()))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *_: object) -> None:
        """Log no requests: the page asks every two seconds."""

    def _send(self, media_type: str, make_body: Callable[[], str]) -> None:
        try:
            body = make_body().encode()
        except InvalidInput as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the run cannot be read", str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{media_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        # The browser may have closed the connection.
        with suppress(ConnectionError):
            self.wfile.write(body)


def serve(path: Path, port: int) -> None:
    """Serve the page of a run until SIGINT.

    Args:
        path: The run folder.
        port: A port of the loopback address; 0 for any free one.

    Raises:
        InvalidInput: The folder is no run folder, or the port is taken.
    """
    with make_server(path, port) as server:
        logger.info(
            "http://%s:%d/   %s; press Ctrl-C to stop", ADDRESS, server.server_address[1], path
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("stopped")


def make_server(path: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of the page that only this machine can reach, see `serve`."""
    handler = type("Handler", (PageHandler,), {"watched": WatchedRun(path)})
    try:
        return ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise InvalidInput(
            file="watch",
            key="--port",
            found=port,
            rule=f"a port that is free ({error.strerror})",
            fix="name another port, or 0 for any that is free",
        ) from None


def _stamp(run: RunView) -> str:
    """Return a digest that changes when a trial begins or ends, and so when the page changes."""
    return digest(
        [
            run.experiment.model_dump(mode="json"),
            run.state,
            run.base is None,
            [trial.finished for trial in run.trials],
            list(run.unfinished),
        ]
    )
