"""All checks of a site, in the order in which a person can fix them."""

from collections.abc import Iterator
from itertools import islice

from client.intake.dicomweb import PacsError
from client.intake.pacs import Pacs, PacsClient
from client.preflight.clock import clock
from client.preflight.data import data_lines
from client.preflight.lines import Line
from client.preflight.machine import disk, gpu, memory
from client.preflight.network import reachability
from client.preflight.permissions import permissions
from client.preflight.privacy import privacy_lines
from client.preflight.versions import packages, python_version
from client.settings import ServerSettings, SiteFolder
from multimix.errors import SiteError

_GIB = 1 << 30
_TRAINING_BYTES = 4 * _GIB  # of memory, for a round at 256 px
_SPARE_BYTES = 2 * _GIB  # of disk, beside as much again as the site has


def site_lines(site: SiteFolder) -> Iterator[Line]:
    """Yield every check of the machine, the files, the images, their patients' privacy and the network."""
    yield python_version()
    yield from packages()
    yield from gpu()
    yield memory(_TRAINING_BYTES)
    yield disk(site.path, _SPARE_BYTES + _size(site))
    yield from clock()
    yield from permissions(site.path, group_readable=site.group is not None)
    yield from _data(site)
    yield from privacy_lines(site)
    if site.settings.pacs is not None:
        yield _pacs(site.settings.pacs)
    if site.settings.server is None:
        fix = "Fill in [server] of site.toml when the coordinator's kit is here, and check again."
        yield Line("server", "WARN", "No server is named yet.", fix)
    else:
        yield from _server(site.settings.server)


def _size(site: SiteFolder) -> int:
    pools = site.intake.glob("pool-*/*.u8")
    return sum(path.stat().st_size for path in pools)


def _data(site: SiteFolder) -> Iterator[Line]:
    try:
        with site.journal() as journal:
            yield from data_lines(site, journal)
    except SiteError as error:
        yield Line("images", "FAIL", f"The images cannot be checked ({error.reason}).", str(error))


def _pacs(settings: Pacs) -> Line:
    try:
        with PacsClient(settings) as client:
            found = len(list(islice(client.search(), 1)))
    except PacsError as error:
        return Line("pacs", "FAIL", f"The PACS cannot be asked ({error.reason}).", str(error))
    if not found:
        return Line("pacs", "WARN", "The PACS answers, but lists no such image.", "Check the dates in [pacs].")
    return Line("pacs", "PASS", "The PACS answers and lists images.")


def _server(settings: ServerSettings) -> list[Line]:
    try:
        ca = None if settings.ca_file is None else settings.ca_file.read_bytes()
    except OSError:
        return [Line("server", "FAIL", "The coordinator's authority cannot be read.", "Check server.ca_file.")]
    return reachability(settings.address, ca=ca)
