"""Reads radiographs from a PACS over DICOMweb: QIDO-RS finds the instances, WADO-RS fetches their bytes.

DICOM PS3.18, sections 10.6 (search) and 10.4 (retrieve). Written on plain HTTP because no dataset may be parsed in
this process (a decoder in a worker does that) and no address may be logged: DICOMweb addresses contain UIDs. The PACS
is not trusted either: answers are capped in size and time, and what it sends reaches no address unchecked.

Every failure is a `PacsError` with a reason code and words of our own; nothing of the address, of the answer or of the
library's exception text goes with it.

    pacs_plain_http     http:// to another machine            pacs_unreachable   no connection
    pacs_secret         a credential file is unusable         pacs_tls           certificate or handshake
    pacs_denied         401 or 403                            pacs_timeout       too slow
    pacs_busy           429, 502, 503, 504 to the last try    pacs_answer        not DICOMweb, or damaged
    pacs_paging         the server ignores `offset`           instance_missing, instance_too_large
"""

import ipaddress
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from client.intake.credentials import read_secret, read_token, tls_context
from client.intake.dicomweb import PacsError, records_of, single_part, text_of
from client.intake.quiet import silence
from multimix.config import Frozen

_STUDY_UID, _SERIES_UID, _INSTANCE_UID, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_UID = re.compile(r"[0-9][0-9.]{0,63}")
# The original encoding if the server gives it; older servers know only the plain requests, and some no multipart.
_ACCEPT_INSTANCE = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
    "application/dicom",
)
_ACCEPT_SEARCH = "application/dicom+json"
_SEARCH_BYTES = 64 << 20  # of one page of search results
_FRAMING_BYTES = 1 << 16  # multipart headers around one instance
_BUSY = (429, 502, 503, 504)
_REFUSED_ENCODING = (400, 406, 415)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0


def _web_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("write https://host:port/path, without user, password or query")
    return url.rstrip("/")


class Pacs(Frozen):
    """Where the PACS is and what to ask of it. Secrets stay in their own files of mode 0600."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_web_address)] = Field(repr=False)  # the DICOMweb root
    username: str | None = Field(default=None, repr=False)
    password_file: Path | None = Field(default=None, repr=False)
    token_file: Path | None = Field(default=None, repr=False)  # a bearer token, instead of user and password
    ca_file: Path | None = Field(default=None, repr=False)  # PEM; only this authority is then trusted
    client_certificate: Path | None = Field(default=None, repr=False)
    client_key: Path | None = Field(default=None, repr=False)
    allow_plain_http: bool = False
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = ("CR", "DX")
    segmentations: bool = False  # also the SEG series of the studies found
    since: date | None = None  # StudyDate, both ends included
    until: date | None = None
    page_size: Annotated[int, Field(ge=1, le=100_000)] = 200
    timeout_s: Annotated[float, Field(gt=0)] = 30.0  # without a byte
    answer_s: Annotated[float, Field(gt=0)] = 600.0  # for one whole answer
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    maximum_bytes: Annotated[int, Field(ge=1)] = 512 << 20  # of one instance

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if self.username is not None and self.token_file is not None:
            raise ValueError("give either username and password_file, or token_file")
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        if self.since and self.until and self.since > self.until:
            raise ValueError("since is later than until")
        return self


@dataclass(frozen=True)
class Instance:
    """One image that the PACS lists. Its repr shows the modality alone."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    instance_uid: str = field(repr=False)
    modality: str


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True)
class _Failure:
    reason: str
    passing: bool = False  # worth another try
    wait_s: float | None = None  # what the server asked for


class PacsClient:
    """A connection to one PACS, held open from `with PacsClient(settings) as pacs:` to its end.

    `skipped` counts listed objects without a usable UID, which cannot be fetched. `sleep` waits between retries.
    """

    def __init__(self, settings: Pacs, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Read the secrets and certificates; nothing is sent yet."""
        parts = urlsplit(settings.url)
        if parts.scheme == "http" and not settings.allow_plain_http and not _is_loopback(parts.hostname or ""):
            raise PacsError("pacs_plain_http")
        self.skipped = 0
        self._settings, self._sleep = settings, sleep
        self._http = httpx.Client(
            verify=tls_context(settings.ca_file, settings.client_certificate, settings.client_key),
            auth=_basic(settings),
            headers={"Accept-Encoding": "identity", **_bearer(settings)},  # nothing to unpack: the cap counts bytes
            timeout=settings.timeout_s,
            trust_env=False,  # no proxy and no .netrc from the environment
            follow_redirects=False,  # credentials go nowhere else
        )
        silence("httpx", "httpcore")  # now: httpx imports httpcore, and makes its loggers, with its first client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self) -> Iterator[Instance]:
        """List every instance of the wanted modalities and dates once, in the server's order.

        Raises:
            PacsError: The server is unreachable, refuses, or its pages cannot be trusted.
        """
        wanted = (*self._settings.modalities, *(("SEG",) if self._settings.segmentations else ()))
        seen: set[str] = set()
        for study in self._studies():
            for modality in wanted:
                for series in self._series(study, modality):
                    for uid, _ in self._pages(f"studies/{study}/series/{series}/instances", {}, _INSTANCE_UID):
                        if uid not in seen:
                            seen.add(uid)
                            yield Instance(study, series, uid, modality)

    def retrieve(self, instance: Instance) -> bytes:
        """Fetch one DICOM file in the encoding it is stored in, if the server can, else as it delivers it.

        Raises:
            PacsError: As `search`, and `instance_missing`, `instance_too_large`.
        """
        path = f"studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.instance_uid}"
        for accept in _ACCEPT_INSTANCE:
            answer = self._get(path, {}, accept, self._settings.maximum_bytes + _FRAMING_BYTES)
            if answer.status not in _REFUSED_ENCODING:
                break
        if answer.status in {204, 404, 410}:
            raise PacsError("instance_missing")
        _expect_success(answer)
        data = single_part(answer.body, answer.headers.get("content-type", ""))
        if len(data) > self._settings.maximum_bytes:
            raise PacsError("instance_too_large")
        if not data:
            raise PacsError("pacs_answer")
        return data  # some servers keep files without preamble: the decoder judges what this is

    def _studies(self) -> Iterator[str]:
        dates = _date_range(self._settings.since, self._settings.until)
        seen: set[str] = set()
        for modality in self._settings.modalities:  # one request each: not every server takes a list
            query = {"ModalitiesInStudy": modality, **dates}
            for study, _ in self._pages("studies", query, _STUDY_UID):
                if study not in seen:
                    seen.add(study)
                    yield study

    def _series(self, study: str, modality: str) -> Iterator[str]:
        for series, record in self._pages(f"studies/{study}/series", {"Modality": modality}, _SERIES_UID):
            if text_of(record, _MODALITY) in {modality, ""}:  # some servers ignore the filter
                yield series

    def _pages(self, path: str, query: Mapping[str, str], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (UID, record) of every match; a short page is the last one.

        A server with a smaller limit of its own says so in a Warning header (PS3.18, 8.3.4.4). Orthanc 1.10 cuts at
        `limit` before it skips `offset` where it filters by ModalitiesInStudy, so a list of several pages ends with a
        look through a wider window; a server that does it right has nothing more there.
        """
        size, offset, wider = self._settings.page_size, 0, False
        known: set[str] = set()
        while True:
            limit = offset + size if wider else size
            records, more = self._page(path, {**query, "limit": str(limit), "offset": str(offset)})
            found = {text_of(record, key): record for record in records}
            if records and not found.keys() - known:
                raise PacsError("pacs_paging")
            for uid in [uid for uid in found if uid not in known]:
                known.add(uid)
                if _UID.fullmatch(uid):
                    yield uid, found[uid]
                else:
                    self.skipped += 1
            offset += len(records)
            if (size <= len(records) <= limit) or (records and more):
                continue
            if wider or offset == len(records):
                return
            wider = True

    def _page(self, path: str, query: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
        answer = self._get(path, query, _ACCEPT_SEARCH, _SEARCH_BYTES)
        if answer.status == 204:  # noqa: PLR2004  (no match)
            return [], False
        _expect_success(answer)
        return records_of(answer.body), answer.headers.get("warning", "").startswith("299")

    def _get(self, path: str, query: Mapping[str, str], accept: str, cap: int) -> _Answer:
        """Ask until there is an answer or the retries are used up; waits double, or are what the server asks for."""
        attempt = 0
        while isinstance(got := self._once(path, query, accept, cap), _Failure):
            if not got.passing or attempt == self._settings.retries:
                raise PacsError(got.reason)
            wait_s = _FIRST_WAIT_S * 2**attempt if got.wait_s is None else got.wait_s
            self._sleep(min(wait_s, _LONGEST_WAIT_S))
            attempt += 1
        return got

    def _once(self, path: str, query: Mapping[str, str], accept: str, cap: int) -> _Answer | _Failure:
        """Ask once. Failures are returned, so that no library exception hangs on what is raised."""
        try:
            with self._http.stream(
                "GET", f"{self._settings.url}/{path}", params=query, headers={"Accept": accept}
            ) as response:
                return _read(response, cap, time.monotonic() + self._settings.answer_s)
        except httpx.TimeoutException:
            return _Failure("pacs_timeout", passing=True)
        except Exception as error:  # noqa: BLE001  (whatever it is, its text may quote the address)
            return _failure_of(error)


def _read(response: httpx.Response, cap: int, deadline: float) -> _Answer | _Failure:
    if response.status_code in {401, 403}:
        return _Failure("pacs_denied")
    if response.status_code in _BUSY:
        return _Failure("pacs_busy", passing=True, wait_s=_retry_after_s(response.headers.get("retry-after", "")))
    if response.headers.get("content-encoding", "identity") != "identity":
        return _Failure("pacs_answer")
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > cap:
            return _Failure("pacs_answer" if cap == _SEARCH_BYTES else "instance_too_large")
        if time.monotonic() > deadline:
            return _Failure("pacs_timeout")
    return _Answer(response.status_code, response.headers, bytes(body))


def _expect_success(answer: _Answer) -> None:
    if not httpx.codes.is_success(answer.status):
        raise PacsError("pacs_answer")


def _date_range(since: date | None, until: date | None) -> dict[str, str]:
    if since is None and until is None:
        return {}
    first, last = (f"{day:%Y%m%d}" if day else "" for day in (since, until))
    return {"StudyDate": f"{first}-{last}"}


def _retry_after_s(header: str) -> float | None:
    """Seconds the server asks for; a date in the header is not worth trusting its clock for."""
    return float(header) if header.isascii() and header.isdigit() else None


def _failure_of(error: Exception) -> _Failure:
    """Name a transport error: a TLS refusal is final, anything else may pass."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return _Failure("pacs_tls")
        cause = cause.__cause__ or cause.__context__
    return _Failure("pacs_unreachable", passing=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _basic(settings: Pacs) -> httpx.BasicAuth | None:
    if settings.username is None or settings.password_file is None:
        return None
    return httpx.BasicAuth(settings.username, read_secret(settings.password_file))


def _bearer(settings: Pacs) -> dict[str, str]:
    if settings.token_file is None:
        return {}
    return {"Authorization": f"Bearer {read_token(settings.token_file)}"}
