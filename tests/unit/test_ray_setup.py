"""Ray's folder, token and cluster, each checked before Ray is started."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sweepcp.errors import InvalidInput, WorkLost
from sweepcp.util import parallel, ray_setup
from sweepcp.util.parallel import ray_connection
from sweepcp.util.ray_setup import (
    LONGEST_FOLDER,
    check_cluster,
    fewer_ray_processes,
    prepare_local_ray,
)

parameter: Any = import_module("ray._private.parameter")
NAMES = ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The variables that are set here are restored afterwards."""
    before = {name: os.environ.pop(name, None) for name in NAMES}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A short default folder, relative so that it is short under any temporary folder."""
    monkeypatch.setattr(ray_setup, "LONGEST_FOLDER", len(os.fsencode(tmp_path)) + 8)
    monkeypatch.setattr(ray_setup, "DEFAULT_FOLDER", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_the_socket_of_a_folder_of_the_longest_name_fits():
    name = ray_setup.SOCKET_IN_FOLDER
    assert LONGEST_FOLDER + len(name) == 107
    assert len("/scratch/user/12345678") <= LONGEST_FOLDER


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "tmp"),
        ({"TMPDIR": "job"}, "job"),
        ({"TMPDIR": "slurm_jobdir/1355700/tmp.t0016"}, "tmp"),
        ({"TMPDIR": "absent"}, "tmp"),
        ({"TMPDIR": "file"}, "tmp"),
        ({"RAY_TMPDIR": "new", "TMPDIR": "job"}, "new"),
    ],
)
def test_ray_has_a_folder_that_is_short_enough(variables: dict[str, str], folder: str, short: Path):
    base = short.parent
    (base / "job").mkdir()
    (base / "slurm_jobdir/1355700/tmp.t0016").mkdir(parents=True)
    (base / "file").touch()
    for name, value in variables.items():
        os.environ[name] = str(base / value)
    prepare_local_ray()
    assert os.environ["RAY_TMPDIR"] == str(base / folder)
    prepare_local_ray()
    assert os.environ["RAY_TMPDIR"] == str(base / folder)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RAY_TMPDIR": "a/folder/with/a/long/name"}, "RAY_TMPDIR"),
        ({"RAY_TMPDIR": "file/x"}, "RAY_TMPDIR"),
        ({"TMPDIR": "a/folder/with/a/long/name"}, "TMPDIR"),
        ({"TMPDIR": "absent"}, "TMPDIR"),
        ({}, "TMPDIR"),
    ],
)
def test_a_folder_without_use_is_refused_by_name(
    variables: dict[str, str], named: str, short: Path, monkeypatch: pytest.MonkeyPatch
):
    base = short.parent
    (base / "file").touch()
    (base / "a/folder/with/a/long/name").mkdir(parents=True)
    monkeypatch.setattr(ray_setup, "DEFAULT_FOLDER", str(base / "file"))
    for name, value in variables.items():
        os.environ[name] = str(base / value)
    with pytest.raises(InvalidInput, match="RAY_TMPDIR \\(or TMPDIR\\)") as refused:
        prepare_local_ray()
    assert refused.value.file == named


def test_a_local_ray_has_a_token_of_its_own_and_keeps_one_that_is_set():
    prepare_local_ray()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    prepare_local_ray()
    assert os.environ["RAY_AUTH_TOKEN"] == token
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


@pytest.mark.parametrize(
    "address", ["", "foo", "bar:x", "127.0.0.1", "127.0.0.1:99999", "[::1", "a b:1", "\udcff:1"]
)
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(InvalidInput, match="the address of a running Ray cluster"):
        check_cluster(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nothing_listens_is_refused(form: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(InvalidInput, match="refused"):
        check_cluster(form.format(port))


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(
        socket, "create_connection", lambda *_, **__: SimpleNamespace(close=lambda: None)
    )

    def run(*_: Any, **__: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return SimpleNamespace(stderr=answer)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_missing_token_is_named_with_what_to_set(monkeypatch: pytest.MonkeyPatch):
    error = "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: missing"
    answer_with(monkeypatch, error)
    with pytest.raises(InvalidInput, match="RAY_AUTH_MODE=token") as refused:
        check_cluster("head:6379")
    assert "requires a token" in refused.value.rule


def test_what_does_not_answer_as_ray_does_is_refused(monkeypatch: pytest.MonkeyPatch):
    answer_with(monkeypatch, subprocess.TimeoutExpired("probe", 1))
    with pytest.raises(InvalidInput, match="does not answer as Ray does"):
        check_cluster("head:6379")
    answer_with(monkeypatch, "")
    check_cluster("head:6379")
    check_cluster("auto")


def test_other_versions_on_the_cluster_are_reported(monkeypatch: pytest.MonkeyPatch):
    def init(**_: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(parallel, "check_cluster", lambda _: None)
    with (
        pytest.raises(InvalidInput, match=r"Version mismatch: .* Ray: 2\.9\.0"),
        ray_connection("head:6379"),
    ):
        pass


@pytest.mark.parametrize(
    "error", [Exception("The current node timed out"), TimeoutError("no GCS"), RuntimeError("x")]
)
def test_a_local_ray_that_does_not_start_is_no_invalid_address(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(WorkLost, match="Ray did not start"), ray_connection(None):
        pass


@pytest.mark.parametrize("failure", [None, RuntimeError("x")])
@pytest.mark.parametrize("prints", [False, True])
def test_a_local_ray_starts_without_the_monitors_that_nothing_uses(
    failure: Exception | None, prints: bool, monkeypatch: pytest.MonkeyPatch
):
    stock = parameter.RayParams
    made = []

    def init(**_: Any) -> None:
        made.append(parameter.RayParams(num_cpus=3))
        if failure:
            raise failure

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    options = {"log_to_driver": True} if prints else {}
    with pytest.raises(WorkLost) if failure else nullcontext(), ray_connection(None, **options):
        pass
    assert [(one.num_cpus, one.no_monitor, one.include_log_monitor) for one in made] == [
        (3, True, prints)
    ]
    assert parameter.RayParams is stock


def test_a_ray_without_these_parameters_starts_as_usual(monkeypatch: pytest.MonkeyPatch):
    def other(num_cpus: int) -> int:
        return num_cpus

    monkeypatch.setattr(parameter, "RayParams", other)
    with fewer_ray_processes(prints_logs=False):
        assert parameter.RayParams is other
    monkeypatch.delattr(parameter, "RayParams")
    with fewer_ray_processes(prints_logs=False):
        assert not hasattr(parameter, "RayParams")
    monkeypatch.setitem(sys.modules, "ray._private.parameter", None)
    with fewer_ray_processes(prints_logs=False):
        pass
