"""Start a tritonserver over a model repository, and stop it without leaving anything behind."""

from __future__ import annotations

import contextlib
import http.client
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tritrack.ensemble_repo.plan import IN_FLIGHT
from tritrack.service.errors import ServerStartError
from tritrack.service.installation import find_installation
from tritrack.service.log import explain, port_taken
from tritrack.service.repository import check_repository, gpu_arguments
from tritrack.service.shm import Regions, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

logger = logging.getLogger(__name__)

PORT_ATTEMPTS = 3
"""A free port may be taken by somebody else before the server binds it."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of the three services; None picks a free one."""

    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None

    def fill(self, address: str) -> Ports:
        """Return the ports with free ones picked where none were given.

        Raises
        ------
        ServerStartError
            Where a port that was given cannot be listened on: the server would find out after its models are loaded.
        """
        given_first = sorted(asdict(self).items(), key=lambda item: item[1] is None)
        numbers = {}
        with contextlib.ExitStack() as stack:
            for service, port in given_first:  # all held until the last is known, so that they differ
                held = stack.enter_context(socket.socket())
                if port is not None:  # as servers do: what an earlier one has left a moment ago is free
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    held.bind((address, port or 0))
                except OSError as error:
                    if port is None:
                        raise
                    raise ServerStartError(
                        f"--{service}-port {port}: the server cannot listen on {address}:{port}: {error.strerror}"
                    ) from None
                numbers[service] = int(held.getsockname()[1])
        return Ports(**numbers)


class Server:
    """A tritonserver; use as a context manager, or call :meth:`start` and :meth:`stop`.

    The server ends with the thread that started it, so that a program that is killed leaves none behind.

    Parameters
    ----------
    repository
        The model repository.
    executable
        A tritonserver; None looks for one (see :func:`find_installation`).
    address
        Address to listen on.
    ports
        Ports to listen on.
    models
        The models to load, of an ensemble its steps too; none given loads all.
    in_flight
        Events at the model's limits that its pool of GPU memory has room for; one that finds none is refused as
        if the server were not available.
    log
        File for the server's log; None keeps it only while the server runs.
    start_timeout, stop_timeout
        Seconds to become ready, at a machine's first start with all that is compiled; seconds to end by itself before it
        is killed.

    Attributes
    ----------
    installation
        The tritonserver found.
    """

    def __init__(
        self,
        repository: Path,
        *,
        executable: Path | None = None,
        address: str = "127.0.0.1",
        ports: Ports | None = None,
        models: Sequence[str] = (),
        in_flight: int = IN_FLIGHT,
        log: Path | None = None,
        start_timeout: float = 300.0,
        stop_timeout: float = 20.0,
    ) -> None:
        self.repository = repository.resolve()
        self.installation = find_installation(executable)
        self._address = address
        self._wanted = ports or Ports()
        self._ports = self._wanted
        self._models = models
        self._in_flight = in_flight
        self._log = log
        self._log_path: Path | None = None
        self._identity = ""
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """HOST:PORT of gRPC: what a client wants."""
        return f"{self._address}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """HOST:PORT of HTTP."""
        return f"{self._address}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """HOST:PORT of the Prometheus metrics."""
        return f"{self._address}:{self._ports.metrics}"

    @property
    def pid(self) -> int:
        """Process id of the running server; its stubs are children of it."""
        return self._running().pid

    def start(self) -> None:
        """Start the server and wait until every step is ready.

        Raises
        ------
        ServerStartError
            Says what is missing on this machine, or why the server gave up.
        """
        if self._process is not None:
            raise ServerStartError("the server runs already")
        self.installation.check()
        for name in remove_leftovers():
            logger.info("removed %s, left in shared memory by a server that died", name)
        check_repository(self.repository, models=self._models)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._ports = self._wanted.fill(self._address)
            try:
                self._launch()
                self._wait_ready()
            except BaseException as error:
                log = self._read_log()
                self.stop()
                if isinstance(error, _EndedError):
                    if port_taken(log) and self._wanted == Ports() and attempt < PORT_ATTEMPTS:
                        continue
                    raise ServerStartError(f"the server did not start: {explain(log)}") from None
                raise
            return

    def stop(self) -> None:
        """Stop the server: ask, wait, and kill what is left of it after ``stop_timeout``."""
        process, self._process = self._process, None
        if process is not None:
            deadline = time.monotonic() + self._stop_timeout
            os.kill(process.pid, signal.SIGTERM)  # terminate() would reap a server that has ended already
            while _exit_status(process.pid) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            # The server was started as the leader of a process group, which holds nothing but its stubs.
            # It is not reaped yet, so the group's number cannot be anybody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _wait_group(process.pid)
        self._cleanup.close()

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit status (of a signal: its number)."""
        while (status := _exit_status(self._running().pid)) is None:
            time.sleep(0.1)
        return status

    def log(self) -> str:
        """Return the log of the running server."""
        self._running()
        return self._read_log()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerStartError("the server does not run")
        return self._process

    def _launch(self) -> None:
        work = Path(tempfile.mkdtemp(prefix="tritrack-server-"))
        self._cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        regions = Regions()
        self._cleanup.callback(regions.close)
        self._identity = regions.prefix
        self._log_path = self._log or work / "server.log"
        command = [
            *_die_with_parent(),
            str(self.installation.binary),
            f"--model-repository={self.repository}",
            f"--id={self._identity}",
            *self.installation.arguments(work),
            f"--backend-config=python,shm-region-prefix-name={regions.prefix}",
            # The configurations are complete; completing them would start every step twice.
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={max(1, math.floor(self._stop_timeout / 2))}",
            *gpu_arguments(self.repository, models=self._models, in_flight=self._in_flight),
        ]
        if self._models:
            command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self._models)]
        for service in ("http", "grpc", "metrics"):
            command += [
                f"--{service}-address={self._address}",
                f"--{service}-port={getattr(self._ports, service)}",
            ]
        logger.info("starting %s (%s)", self.installation.binary, self.installation.source)
        try:
            log_file = self._log_path.open("wb")
        except OSError as error:
            raise ServerStartError(f"{self._log_path}: cannot be written: {error.strerror}") from None
        with log_file as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.installation.environment(work),
                start_new_session=True,
                pass_fds=(regions.lock,),
            )

    def _wait_ready(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self._start_timeout
        while _exit_status(process.pid) is None:
            if _is_ready(self.http_url, identity=self._identity):
                return
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"the server was not ready after {self._start_timeout:g} s: {explain(self._read_log())}"
                )
            time.sleep(0.05)
        raise _EndedError

    def _read_log(self) -> str:
        if self._log_path is None or not self._log_path.is_file():
            return ""
        return self._log_path.read_text(errors="replace")


class _EndedError(Exception):
    """The server ended before it was ready."""


def _exit_status(pid: int) -> int | None:
    """Return the exit status of a child, None while it runs; does not reap it."""
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if result is None else result.si_status


def _die_with_parent() -> list[str]:
    """Return the wrapper that ends the server when the thread that started it dies, where there is one."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "SIGTERM"] if setpriv else []


def _is_ready(url: str, *, identity: str) -> bool:
    """Whether the server of this identity is ready; another may have taken the port since it was seen to be free."""
    connection = http.client.HTTPConnection(url, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/ready")
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.HTTPStatus.OK:
            return False
        connection.request("GET", "/v2")
        return identity.encode() in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_group(group: int) -> None:
    """Wait until the killed processes of a group are gone."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
