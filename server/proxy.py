"""An nginx configuration that lets hospitals reach what a SuperNode needs of the SuperLink, and nothing else.

Flower's control API has no authentication and shares its port with the API of the SuperNodes. So the port stays on the
loopback, and the proxy passes on the paths that an admitted SuperNode asks for (flwr 1.41,
`supernode/fleet_http_client.py`), less `register-node` and `unregister-node`: nodes are admitted by the coordinator.
"""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multimix.contract.kit import split_address
from server.nodes import local_address
from server.provision.folder import FederationFolder

TEMPLATE: Final = "nginx.conf.md"
PATHS: Final = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"),
    *("get-run", "get-fab", "pull-object", "push-object", "confirm-message-received"),
)
# Flower cuts arrays into objects of 5 MiB (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE); what goes with them is small.
BODY_LIMIT_MIB: Final = 32


def proxy_configuration(folder: FederationFolder, *, listen: int | None = None) -> str:
    """Return the server block; it goes into nginx's http block, as files in /etc/nginx/conf.d do.

    It listens on the port of the federation's address unless another is given; that may not be the SuperLink's own on
    the same interface.
    """
    host, port = split_address(folder.settings.address)
    environment = Environment(  # noqa: S701  (no HTML)
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(TEMPLATE).render(
        federation=folder.settings.name,
        host=host,
        listen=listen or port,
        upstream=local_address(folder),
        paths="|".join(PATHS),
        limit=BODY_LIMIT_MIB,
        certificate=folder.certificate.resolve(),
        certificate_key=folder.certificate_key.resolve(),
        authorities=folder.ca.resolve(),
    )
