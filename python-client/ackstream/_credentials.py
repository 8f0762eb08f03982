"""By what a client trusts a server, and how it says who it is."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

__all__ = ["Tls", "Token", "read_token"]

StrPath = str | os.PathLike[str]

Token = str | Callable[[], str]
"""A bearer token, or what returns it: called for each stream, so that a token may change."""

OTHERS = stat.S_IRWXO
"""What everyone on the machine may do with a file; with one that holds a secret, nothing."""


@dataclass(frozen=True)
class Tls:
    """How to speak TLS. All files are PEM, and are read anew for each stream, so that they may change.

    Attributes:
        ca: The authorities by which the server is trusted. None = those that gRPC comes with.
        cert: The client's own certificate, and those up to its authority. Its DNS names and URIs say who it is.
        key: Its private key; refused where everyone on the machine can reach the file.
    """

    ca: StrPath | None = None
    cert: StrPath | None = None
    key: StrPath | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate and its private key go together: give both cert and key, or neither")

    def read(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: One cannot be read.
            ValueError: One is not PEM, or holds a secret and can be reached by everyone.
        """
        ca = None if self.ca is None else _pem(self.ca, Path(self.ca).read_bytes(), b"CERTIFICATE")
        cert = None if self.cert is None else _pem(self.cert, Path(self.cert).read_bytes(), b"CERTIFICATE")
        key = None if self.key is None else _pem(self.key, _read_secret(self.key), b"PRIVATE KEY")
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def read_token(path: StrPath) -> str:
    """Returns the token in a file. With `functools.partial(read_token, path)` as its token a client reads it anew.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no token, or can be reached by everyone on the machine.
    """
    return _check(_read_secret(path).decode(errors="replace").strip(), f"{os.fspath(path)}: it")


def authorization(token: Token) -> tuple[str, str]:
    """Returns the metadata that carries a token.

    Raises:
        OSError: As the token's function does.
        ValueError: It is none.
    """
    value = token if isinstance(token, str) else token()
    return ("authorization", f"Bearer {_check(value, 'token')}")


def _check(token: str, name: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{name} is no token: letters, digits and signs of ASCII, without spaces")  # never its text
    return token


def _read_secret(path: StrPath) -> bytes:
    with Path(path).open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & OTHERS:
            raise ValueError(
                f"{os.fspath(path)} holds a secret that everyone on this machine can reach (mode {mode:04o}): "
                "chmod o= it"
            )
        return file.read()


def _pem(path: StrPath, text: bytes, what: bytes) -> bytes:
    if b"-----BEGIN " not in text or what + b"-----" not in text:
        raise ValueError(f"{os.fspath(path)} has no {what.decode()} in PEM")
    return text
