"""The page of a run that goes on, served on the loopback address: `sweepcp watch`."""

import json
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

ADDRESS = "127.0.0.1"


class WatchedRun:
    """A run folder that is read at every request, by one of them at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.busy = threading.Lock()
        self.made: tuple[str, str] = ("", "")
        load_run(path)

    def now(self) -> dict[str, str]:
        """How far the search is, and a stamp that changes when the page does: a trial has begun or ended."""
        with self.busy:
            run = load_run(self.path)
            return {"stamp": self._stamp(run), "progress": progress_text(run)}

    def page(self) -> str:
        """The page of what is in the folder now."""
        with self.busy:
            run = load_run(self.path)
            stamp = self._stamp(run)
            if self.made[0] != stamp:
                self.made = (stamp, render_page(run, stamp))
            return self.made[1]

    def _stamp(self, run: RunView) -> str:
        return digest(
            [
                run.experiment.model_dump(mode="json"),
                run.state,
                run.base is None,
                [t.finished for t in run.trials],
                list(run.unfinished),
            ]
        )


def serve(path: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until SIGINT. Raises `BadInput` for a folder that is no run, and a port that is taken."""
    with make_server(path, port) as running:
        say(f"http://{ADDRESS}:{running.server_address[1]}/   {path}; Ctrl-C ends it")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            say("ended")


def make_server(path: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page at `/`, and at `/now` of how far the search is, that answers to this machine only."""
    watched = WatchedRun(path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (ADDRESS, "localhost"):
                self.send_error(
                    HTTPStatus.FORBIDDEN, "this page is for the machine that it runs on"
                )
            elif self.path == "/":
                self._send("text/html", watched.page)
            elif self.path == "/now":
                self._send("application/json", lambda: json.dumps(watched.now()))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, kind: str, make: Callable[[], str]) -> None:
            try:
                body = make().encode()
            except InvalidInput as error:
                self.send_error(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "the run cannot be read", str(error)
                )
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with suppress(ConnectionError):  # the reader may have gone
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are not worth a line."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        fix = "name another port, or 0 for any that is free"
        raise InvalidInput(
            file="watch",
            key="--port",
            found=port,
            rule=f"a port that is free ({error.strerror})",
            fix=fix,
        ) from None
