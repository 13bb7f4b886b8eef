"""One file of the web, within limits of size and time."""

from __future__ import annotations

import time
from functools import cache
from http.client import HTTPException
from urllib import request
from urllib.error import HTTPError, URLError

SILENCE = 20.0  # seconds without a byte
WHOLE = 300.0  # seconds for all of it: a server that drips would never be silent
_TRIES = 3
_PAUSE = 1.0  # seconds before the second try, twice that before the third
_BUSY = {429, 500, 502, 503, 504}  # what passes
_PIECE = 2**18


def fetch(url: str, limit: int, *, silence: float = SILENCE, whole: float = WHOLE) -> bytes:
    """The bytes at an `http` or `https` address, no more than `limit` + 1 of them.

    Redirections are followed to such addresses only: one to `file:` would read this machine.

    Raises:
        OSError: it cannot be had; the text says why.
    """
    for attempt in range(_TRIES):
        time.sleep(_PAUSE * attempt)
        try:
            return _get(url, limit, silence, whole)
        except HTTPError as error:
            error.close()
            if error.code not in _BUSY or attempt == _TRIES - 1:
                raise
        except (ConnectionError, URLError) as error:
            passing = isinstance(error, ConnectionError) or isinstance(error.reason, ConnectionError)
            if not passing or attempt == _TRIES - 1:
                raise
        except (HTTPException, ValueError) as error:
            raise OSError(str(error) or type(error).__name__) from error
    raise AssertionError("the last try returns or raises")


def _get(url: str, limit: int, silence: float, whole: float) -> bytes:
    end = time.monotonic() + whole
    found = bytearray()
    with _opener().open(url, timeout=silence) as answer:
        while piece := answer.read1(min(_PIECE, limit + 1 - len(found))):
            found += piece
            if time.monotonic() > end:
                raise TimeoutError(f"not whole after {whole:g} seconds")
        if answer.length and len(found) <= limit:
            raise ConnectionError(f"cut short after {len(found):,} bytes")
    return bytes(found)


@cache
def _opener() -> request.OpenerDirector:
    """Knows http, https and the environment's proxies, and nothing else: urllib's own would read `file:` and `ftp:`."""
    opener = request.OpenerDirector()
    opener.addheaders = [("User-Agent", "merit")]
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
