"""What Ray needs of the environment: a folder for its sockets, a token, a cluster that answers."""

import inspect
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweepcp.errors import InvalidInput
from sweepcp.util.environment import set_home_for_libraries

logger = logging.getLogger(__name__)
LONGEST_SOCKET = 107
"""Bytes of a socket's path on Linux."""
SOCKET_IN_FOLDER = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray gives to a socket in its temporary folder."""
LONGEST_FOLDER = LONGEST_SOCKET - len(SOCKET_IN_FOLDER)
DEFAULT_FOLDER = "/tmp"
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""Asks a cluster for its id, as Ray's own connection does, which repeats it for minutes."""


def prepare_local_ray() -> None:
    """Set the environment in which Ray starts on this machine. Call it before Ray is imported.

    Ray then listens on the loopback address only, accepts no process that lacks a token of this
    run, needs no home folder, and has a temporary folder that is short enough for its sockets.

    Raises:
        InvalidInput: There is no such folder.
    """
    set_home_for_libraries()
    # Despite its name this decides, on every system, whether a local Ray binds to the loopback
    # address or to one that other machines reach.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray would otherwise write a token into the home folder. There may be none, and every cluster
    # that is started there later would require that token.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_TMPDIR"] = str(_local_folder())


@contextmanager
def fewer_ray_processes(*, prints_logs: bool) -> Iterator[None]:
    """Have `ray.init` start only the processes that a cluster of one machine needs.

    The autoscaler monitor and the log monitor take a second of CPU time to start, and the first one
    another second to end. `ray.init` has no option for them, so this sets parameters of a private
    class. A Ray without these parameters starts all its processes.

    Args:
        prints_logs: Whether this process prints what workers do, which the log monitor sends it.
    """
    wanted = {"no_monitor": True, "include_log_monitor": prints_logs}
    try:
        module: Any = import_module("ray._private.parameter")
        stock = module.RayParams
    except (ImportError, AttributeError):
        known = False
    else:
        known = wanted.keys() <= inspect.signature(stock).parameters.keys()
    if not known:
        yield
        return
    module.RayParams = partial(stock, **wanted)
    try:
        yield
    finally:
        module.RayParams = stock


def _local_folder() -> Path:
    """Return the folder in which a local Ray puts its sockets and logs."""
    if stated := os.environ.get("RAY_TMPDIR"):
        folder = Path(stated).absolute()
        if problem := _problem_with(folder):
            raise _unusable_folder("RAY_TMPDIR", stated, problem)
        return folder
    default = Path(DEFAULT_FOLDER)
    if not (stated := os.environ.get("TMPDIR")):
        stated = DEFAULT_FOLDER
    folder = Path(stated).absolute()
    problem = _problem_with(folder) if folder.is_dir() else "is no folder"
    if problem and _problem_with(default):
        raise _unusable_folder("TMPDIR", stated, problem)
    if problem:
        logger.info("TMPDIR %s: Ray's sockets and logs are in %s/ray", problem, default)
        return default
    return folder


def _problem_with(folder: Path) -> str:
    """Return why Ray cannot use a folder, which it creates where it is missing; empty if it can."""
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        return f"is longer than the {LONGEST_FOLDER} bytes that leave room for Ray's sockets"
    existing = folder / "ray"
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"is of no use: {existing} is no folder that can be written"
    return ""


def _unusable_folder(name: str, stated: str, problem: str) -> InvalidInput:
    return InvalidInput(
        file=name,
        key="the folder of Ray's sockets and logs",
        found=stated,
        rule=f"a short folder that can be written; this one {problem}",
        fix="set RAY_TMPDIR (or TMPDIR) to one on a local disk, such as /tmp",
    )


def check_cluster(address: str) -> None:
    """Check within seconds that a Ray cluster answers, and that it accepts this process.

    Ray's own connection tries for minutes, warns every few seconds, and does not say that a token
    is missing.

    Raises:
        InvalidInput: No cluster answers, or it requires another token.
    """
    set_home_for_libraries()
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if not address:  # Ray finds at once that there is none on this machine
            return
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        if url.hostname is None or url.port is None:
            raise ValueError("no host and port")
        socket.create_connection((url.hostname, url.port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, UnicodeError) as error:
        raise no_cluster(address, str(error)) from None
    if "://" in address:  # a Ray Client server, which `ray.init` knows
        return
    command = [sys.executable, "-c", PROBE, address]
    try:
        probe = subprocess.run(
            command,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise no_cluster(address, "what listens there does not answer as Ray does") from None
    if "AuthenticationError" in probe.stderr:
        raise InvalidInput(
            file="--address",
            key="--address",
            found=address,
            rule="a Ray cluster that accepts this process; this one requires a token that was not "
            "sent or is another one",
            fix="set RAY_AUTH_MODE=token, and the token of the cluster (`ray get-auth-token` on its"
            " head) in ~/.ray/auth_token, RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH",
        )


def no_cluster(address: str, reason: str) -> InvalidInput:
    """Return the error of an address to which Ray cannot connect."""
    return InvalidInput(
        file="--address",
        key="--address",
        found=address,
        rule=f"the address of a running Ray cluster ({' '.join(reason.split())})",
        fix="pass the address that `ray start --head` prints, or omit --address to run here",
    )
