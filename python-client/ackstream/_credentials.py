"""By what a client trusts a server, and how it says who it is."""

import errno
import os
import ssl
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

TOKEN, PRIVATE_KEY = "token", "private key"
"""What a file that nobody else may reach holds."""

LONGEST = 1 << 20
"""Bytes of a file."""


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
        ca = None if self.ca is None else _read(self.ca)
        cert = None if self.cert is None else _read(self.cert)
        key = None if self.key is None else _read_secret(self.key, PRIVATE_KEY)
        self._check()
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)

    def _check(self) -> None:
        # gRPC says of wrong files only that it has no handshake, and tries again for ever.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ValueError(f"{self.ca} has no certificates in PEM: {error}") from None
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            raise ValueError(f"{self.cert} has no certificate in PEM for that private key: {error}") from None


def read_token(path: StrPath) -> str:
    """Returns the token in a file. With `functools.partial(read_token, path)` as its token a client reads it anew.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no token, or can be reached by everyone on the machine.
    """
    return _check(_read_secret(path, TOKEN).decode(errors="replace").strip(), f"{os.fspath(path)}: it")


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


def _read(path: StrPath, *, secret: str | None = None) -> bytes:
    name = os.fspath(path)
    if (secret == TOKEN or "PRIVATE KEY" in name) and not _exists(path):
        # Without its name: somebody may have given the secret itself.
        raise FileNotFoundError(errno.ENOENT, f"the file of a {secret} is not there")
    if _exists(path) and not Path(path).is_file():
        raise ValueError(f"{name} is no file")
    with Path(path).open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if secret and os.name == "posix" and mode & OTHERS:
            raise ValueError(
                f"{name} holds a secret that everyone on this machine can reach (mode {mode:04o}): chmod o= it"
            )
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise ValueError(f"{name} has more than 1 MiB")
    return text


def _read_secret(path: StrPath, what: str) -> bytes:
    return _read(path, secret=what)


def _exists(path: StrPath) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a text that cannot be the name of a file
        return False


def _no_password() -> str:
    raise ssl.SSLError("the private key is encrypted")  # and nobody is there to be asked
