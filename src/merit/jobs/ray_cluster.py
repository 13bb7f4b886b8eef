"""Joins a Ray cluster or starts one on this machine, and notices when its head is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError, first_line
from merit.config.launch import RayConfig

_KNOCK_SECONDS = 10
_ASK_SECONDS = 5  # between two looks at the head
_SILENT_SECONDS = 30  # Ray ends the whole process, ours, when its head has been silent for a minute
# Ray speaks HTTP/2: how a client begins, with no settings of its own. A server's first frame has its settings (type 4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def connect(config: RayConfig) -> tuple[Any, bool]:
    """The `ray` module, connected; and whether it was we who connected.

    Raises:
        InputError: not installed, no cluster answers, or none can be started here.
    """
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed; run `pip install 'merit-tuning[ray]'`", field="launch.engine") from None
    if ray.is_initialized():
        return ray, False
    address, field = _address(config)
    _knock(address, field)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _hushed():
            ray.init(
                address=config.address,
                namespace="merit",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if address else False,
            )
    except Exception as error:  # Ray raises whatever its parts do, and plain Exception where its own do not start
        what = "Ray does not start on this machine" if address is None else f"no Ray cluster answers at {address}"
        raise InputError(f"{what}: {_reason(error)}", field=field) from None
    finally:
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)
    return ray, True


def _address(config: RayConfig) -> tuple[str | None, str]:
    """The address that Ray will use, and where it was given: its own order."""
    if config.address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    return config.address, "launch.ray.address" if config.address else "launch.engine"


def _knock(address: str | None, field: str) -> None:
    """Ray itself waits for minutes, or for ever, where nobody listens or something else does."""
    place = _host_and_port(address)
    if place is None:
        if address is not None and address.startswith("ray://"):
            raise InputError(f"{address} is no address of Ray; write ray://HOST:10001", field=field)
        return
    try:
        with socket.create_connection(place, timeout=_KNOCK_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # it talks to nobody without a certificate
            line.sendall(_HELLO)
            settings = line.makefile("rb").read(9)
    except (OSError, UnicodeError) as error:  # the latter: no name of a host
        raise InputError(f"no Ray cluster answers at {address}: {error}", field=field) from None
    if settings[3:4] != b"\x04":
        raise InputError(f"no Ray cluster answers at {address}: what listens there is not Ray", field=field)


def _reason(error: Exception) -> str:
    if "InvalidAuthToken" in str(error.__cause__):
        return "it wants its token; set RAY_AUTH_MODE=token here, where ~/.ray/auth_token must be the cluster's"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "Failed to start GCS. Last 5 lines of error files:" and the lines.
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 and lines[0].endswith(":") else first_line(error)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps from the terminal what Ray's C++ prints, past Python, of every try to connect."""
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _host_and_port(address: str | None) -> tuple[str, int] | None:
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d{1,5})", address or "")
    return (found[1], int(found[2])) if found else None


def head_of(ray: Any, config: RayConfig) -> Head:
    """The head of the cluster that `ray` is connected to."""
    address, _ = _address(config)
    if address is not None and address.startswith("ray://"):
        return Head(address)
    return Head(ray.get_runtime_context().gcs_address)


class Head:
    """The head of a cluster, looked at now and then."""

    def __init__(self, address: str) -> None:
        self._address, self._place = address, _host_and_port(address)
        self._asked = self._answered = time.monotonic()

    def look(self) -> None:
        """Raises a StageError when it has not answered for half a minute."""
        now = time.monotonic()
        if self._place is None or now - self._asked < _ASK_SECONDS:
            return
        self._asked = now
        try:
            socket.create_connection(self._place, timeout=_ASK_SECONDS).close()
            self._answered = now
        except OSError as error:
            if now - self._answered >= _SILENT_SECONDS:
                raise StageError(
                    f"the head of the Ray cluster at {self._address} is gone ({error}); run again to resume "
                    "when there is one"
                ) from None
