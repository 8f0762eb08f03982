"""TLS, certificates and tokens: what the library reads and refuses, and what the real server says to it."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

import ackstream
from ackstream._transport import GrpcTransport, StreamBroken
from tests.processes import BINARY, TIMEOUT, demo_client, server

SHOP = "shop-token-0123456789"
BILLING = "billing-token-0123456789"

CONFIGURATION = """
tls_cert = "{0}/server.pem"
tls_key = "{0}/server.key"
tls_client_ca = "{0}/ca.pem"
tokens = "{0}/tokens"
reload_interval = "100ms"
[topics.demo.subscriptions.demo]
dead_letter_topic = "discard"
[access.shop]
publish = "demo"
[access.billing]
consume = "demo"
"""

needs_binary = [
    pytest.mark.real_time,
    pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary"),
]


@dataclass
class Files:
    """What a server and its clients need, in one folder."""

    folder: Path
    authority: trustme.CA

    def write(self, name: str, text: bytes | str) -> Path:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def issue(self, name: str, *names: str) -> None:
        issued = self.authority.issue_cert(*names)
        self.write(f"{name}.pem", b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.write(f"{name}.key", issued.private_key_pem.bytes())

    def tls(self, name: str | None = None) -> ackstream.Tls:
        if name is None:
            return ackstream.Tls(self.folder / "ca.pem")
        return ackstream.Tls(self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path, trustme.CA())
    files.write("ca.pem", files.authority.cert_pem.bytes())
    files.issue("server", "localhost", "127.0.0.1")
    files.issue("shop", "shop")
    files.issue("billing", "billing")
    files.write("tokens", f"shop {SHOP}\nbilling {BILLING}\n")
    files.write("billing.token", BILLING + "\n")
    files.write("ackstream.toml", CONFIGURATION.format(tmp_path))
    yield files  # noqa: PT022 - the folder goes with the test


class TestFiles:
    """What is wrong with files and tokens is told before anything is tried, and never by its text."""

    def test_a_certificate_without_its_key_is_refused(self) -> None:
        for arguments in ({"cert": "a"}, {"key": "a"}):
            with pytest.raises(ValueError, match="give both cert and key, or neither"):
                ackstream.Tls(**arguments)

    def test_a_secret_that_everyone_can_reach_is_refused(self, files: Files) -> None:
        for name in ("shop.key", "billing.token"):
            (files.folder / name).chmod(0o604)
        with pytest.raises(ValueError, match=r"shop\.key holds a secret that everyone .* \(mode 0604\): chmod o= it"):
            ackstream.connect(tls=files.tls("shop"))
        with pytest.raises(ValueError, match=r"billing\.token holds a secret that everyone .* \(mode 0604\)"):
            ackstream.read_token(files.folder / "billing.token")

    def test_a_secret_that_its_group_can_read_is_taken(self, files: Files) -> None:
        path = files.folder / "billing.token"
        path.chmod(0o640)
        assert ackstream.read_token(path) == BILLING

    def test_what_is_missing_or_no_pem_is_named(self, files: Files) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.pem"):
            ackstream.connect(tls=ackstream.Tls(files.folder / "nothing.pem"))
        files.write("ca.pem", b"hello")
        with pytest.raises(ValueError, match=r"ca\.pem has no certificates in PEM"):
            ackstream.connect(tls=files.tls())

    def test_a_secret_in_the_place_of_its_file_is_not_shown(self, files: Files) -> None:
        with pytest.raises(FileNotFoundError, match="the file of a token is not there") as refused:
            ackstream.read_token(SHOP)
        assert SHOP not in str(refused.value)
        assert refused.value.filename is None
        key = 10 * (files.folder / "shop.key").read_text()  # longer than the name of a file may be
        with pytest.raises(FileNotFoundError, match=r"the file of a private key is not there$"):
            ackstream.connect(tls=ackstream.Tls(files.folder / "ca.pem", files.folder / "shop.pem", key))

    def test_a_certificate_with_another_ones_key_and_a_folder_are_told(self, files: Files) -> None:
        other = ackstream.Tls(files.folder / "ca.pem", files.folder / "shop.pem", files.folder / "billing.key")
        with pytest.raises(ValueError, match=r"shop\.pem has no certificate in PEM for that private key"):
            ackstream.connect(tls=other)
        with pytest.raises(ValueError, match="is no file"):
            ackstream.connect(tls=ackstream.Tls(files.folder))

    @pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "sn\u00f6", "tab\t"])
    def test_what_is_no_token_is_refused_without_its_text(self, token: str, files: Files) -> None:
        with pytest.raises(
            ValueError, match=r"^token is no token: letters, digits and signs of ASCII, without spaces$"
        ):
            ackstream.connect(token=token)
        path = files.write("token", token.replace("\n", " "))
        if token.strip() != "tab":
            with pytest.raises(ValueError, match="is no token") as refused:
                ackstream.read_token(path)
            assert not token or token not in str(refused.value)

    async def test_files_that_cannot_be_read_any_more_break_one_stream_and_not_the_client(self, files: Files) -> None:
        transport = GrpcTransport("localhost:1", tls=files.tls("shop"))
        (files.folder / "shop.key").unlink()
        with pytest.raises(StreamBroken, match=r"UNAVAILABLE: not tried: .*shop\.key"):
            await transport.open()


async def publish(target: str, tls: ackstream.Tls | None, token: ackstream.Token | None = None) -> int:
    async with asyncio.timeout(TIMEOUT):
        async with ackstream.connect(target, tls=tls, token=token, connect_timeout=2) as client:
            return await client.publish("demo", b"hello")


async def consume(target: str, tls: ackstream.Tls | None, token: ackstream.Token | None = None) -> bytes:
    async with asyncio.timeout(TIMEOUT):
        async with ackstream.connect(target, tls=tls, token=token, connect_timeout=2) as client:
            async for delivery in client.consume("demo", "demo"):
                delivery.ack()
                return delivery.payload
    raise AssertionError("the stream has ended")


class TestServer:
    """The library and the demo client against the real server."""

    pytestmark = needs_binary

    async def test_a_client_is_let_in_by_its_certificate_and_by_its_token(self, files: Files) -> None:
        async with server("serve", "--config", str(files.folder / "ackstream.toml")) as (_, target):
            for number, (tls, token) in enumerate(
                [(files.tls("shop"), None), (files.tls(), SHOP), (files.tls(), lambda: SHOP)], start=1
            ):
                assert await publish(target, tls, token) == number
            assert await consume(target, files.tls("billing")) == b"hello"
            assert await consume(target, files.tls(), BILLING) == b"hello"

    async def test_a_client_that_may_not_is_told_so_and_tries_no_more(self, files: Files) -> None:
        unauthenticated, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
        async with server("serve", "--config", str(files.folder / "ackstream.toml")) as (_, target):
            for act, tls, token, code in [
                (publish, files.tls(), None, unauthenticated),
                (publish, files.tls(), "wrong-token-0123456789", unauthenticated),
                (publish, files.tls("billing"), None, denied),
                (publish, files.tls(), BILLING, denied),
                (consume, files.tls("shop"), None, denied),
                (consume, files.tls(), SHOP, denied),
            ]:
                with pytest.raises(ackstream.StreamRefused) as refused:
                    await act(target, tls, token)
                assert refused.value.code is code
                assert "token-0123456789" not in str(refused.value)

    async def test_a_server_that_is_not_trusted_and_one_that_speaks_tls_are_not_talked_to(self, files: Files) -> None:
        other = files.write("other.pem", trustme.CA().cert_pem.bytes())
        async with server("serve", "--config", str(files.folder / "ackstream.toml")) as (binary, target):
            with pytest.raises(
                ackstream.ServerUnreachable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"
            ):
                await publish(target, ackstream.Tls(other), SHOP)
            with pytest.raises(ackstream.ServerUnreachable):
                await publish(target, None, SHOP)
            binary.terminate()
            await binary.exit_code()
        assert any("0 published" in line for line in binary.lines)

    async def test_the_demo_client_presents_itself_and_ends_with_69_where_it_may_not(self, files: Files) -> None:
        folder = str(files.folder)
        tls = ["--tls-ca", f"{folder}/ca.pem"]
        async with server("demo", "3", "--interval", "10ms", "--config", f"{folder}/ackstream.toml") as (_, target):
            async with demo_client(
                target, *tls, "--tls-cert", f"{folder}/shop.pem", "--tls-key", f"{folder}/shop.key"
            ) as client:
                await client.line(
                    r"The server refused this consumer: PERMISSION_DENIED: client \"shop\" may not consume"
                )
                assert await client.exit_code() == 69
            async with demo_client(
                target, "--drop-rate", "0", *tls, "--token-file", f"{folder}/billing.token"
            ) as client:
                assert await client.exit_code() == 0
            assert "[PYTHON CLIENT] Sent ACK for message 3" in client.lines

    async def test_a_new_token_is_read_for_the_next_stream(self, files: Files) -> None:
        token = files.write("shop.token", SHOP)
        async with server("serve", "--config", str(files.folder / "ackstream.toml")) as (binary, target):
            async with ackstream.connect(target, tls=files.tls(), token=lambda: ackstream.read_token(token)) as client:
                assert await client.publish("demo", b"1") == 1
                # First the client's next token, which the server takes beside the old one; then only that.
                files.write("tokens", f"shop {SHOP}\nshop next-{SHOP}\n")
                await binary.line("Tokens have changed", 1)
                os.replace(files.write("next.token", f"next-{SHOP}"), token)  # noqa: PTH105 - at once
                assert await client.publish("demo", b"2") == 2
            async with ackstream.connect(target, tls=files.tls(), token=lambda: ackstream.read_token(token)) as client:
                files.write("tokens", f"shop next-{SHOP}\n")
                await binary.line("Tokens have changed", 2)
                assert await client.publish("demo", b"3") == 3
