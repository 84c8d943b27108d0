"""Proxies as hospitals and bad networks have them: `python -m tests.deployment.proxies KIND LISTEN ...`.

    connect LISTEN                         an HTTPS proxy: HTTP CONNECT, counts what it let through
    slow LISTEN TO DELAY_S BYTES_PER_S     a slow link: each piece is late, and no more bytes a second get through
    intercept LISTEN TO CERT KEY           breaks TLS open with a certificate of its own and looks inside

Each prints "ready" once it listens. LISTEN and TO are HOST:PORT.
"""

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable

_PIECE = 65536
Pipe = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until it ends."""
    try:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


def slowly(delay_s: float, bytes_per_s: float) -> Pipe:
    """Return a copy that is late by a constant, and limited in what it passes on in a second."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(int(min(_PIECE, max(1, bytes_per_s / 10)))):
                await asyncio.sleep(delay_s + len(piece) / bytes_per_s)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    return pipe


async def joined(client, upstream, pipe: Pipe) -> None:
    """Pass on both ways until both ends are done."""
    await asyncio.gather(pipe(client[0], upstream[1]), pipe(upstream[0], client[1]), return_exceptions=True)


def address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def connect_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one CONNECT."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode("ascii", "replace")
    method, target, *_ = request.split(" ", 2)
    if method != "CONNECT":
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
        writer.close()
        return
    print(f"CONNECT {target}", flush=True)
    try:
        upstream = await asyncio.open_connection(*address(target))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        writer.close()
        return
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await joined((reader, writer), upstream, copy)


def forwarder(to: str, pipe: Pipe, *, tls: ssl.SSLContext | None = None):
    """Return a handler that passes a connection on to one place."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(*address(to), ssl=tls)
        except OSError:
            writer.close()
            return
        await joined((reader, writer), upstream, pipe)

    return handle


async def main(kind: str, listen: str, *rest: str) -> None:
    tls = None
    if kind == "connect":
        handler = connect_proxy
    elif kind == "slow":
        handler = forwarder(rest[0], slowly(float(rest[1]), float(rest[2])))
    elif kind == "intercept":
        tls, blind = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        tls.load_cert_chain(rest[1], rest[2])
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        handler = forwarder(rest[0], copy, tls=blind)
    else:
        raise SystemExit(f"no proxy of kind {kind}")
    server = await asyncio.start_server(handler, *address(listen), ssl=tls)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
