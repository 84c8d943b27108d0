"""A TLS server that goes on showing a certificate after its file was replaced."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.provision.folder import FederationFolder


@contextmanager
def showing(folder: FederationFolder, address: str) -> Iterator[None]:
    """Show the certificate that the folder holds now, until the end, as a server does that nobody restarts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.certificate_key)
    host, port = address.split(":")
    listener = socket.create_server((host, int(port)))

    def answer() -> None:
        while True:
            try:
                taken, _ = listener.accept()
                context.wrap_socket(taken, server_side=True).close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
