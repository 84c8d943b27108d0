"""What a DICOMweb server answers, taken apart without trusting it, and the one error that reading a PACS ends in.

Multipart bodies (RFC 2046, 5.1) and DICOM JSON (PS3.18, annex F). Datasets themselves are never parsed here.
"""

import email.message
import json
from collections.abc import Mapping
from typing import Any

from multimix.errors import SiteError

_MESSAGES = {
    "pacs_plain_http": "the PACS address is http:// to another machine; use https:// or set allow_plain_http = true",
    "pacs_secret": "a credential file of the PACS is missing, empty, unreadable or not mode 0600",
    "pacs_unreachable": "no connection to the PACS; check address, port, firewall and that DICOMweb is running",
    "pacs_tls": "no trusted TLS connection to the PACS; check ca_file, the client certificate and interception",
    "pacs_denied": "the PACS refused these credentials (401 or 403); check user, password or token file and rights",
    "pacs_timeout": "the PACS was slower than timeout_s or answer_s; raise them or ask for less at a time",
    "pacs_busy": "the PACS stayed busy (429, 502, 503 or 504) through every retry; try again later",
    "pacs_answer": "the PACS sent something that is not a DICOMweb answer; check that the address is its DICOMweb root",
    "pacs_paging": "the PACS repeats pages (it ignores offset); set page_size above the number of studies",
    "instance_missing": "the PACS listed an instance that it does not deliver",
    "instance_too_large": "an instance is larger than maximum_bytes",
}


class PacsError(SiteError):
    """The PACS could not be read; `reason` is one of the codes above."""

    def __init__(self, reason: str) -> None:
        """Take the words for `reason` from our own table."""
        super().__init__(reason, _MESSAGES[reason])


def single_part(body: bytes, content_type: str) -> bytes:
    """Return the one part of a multipart/related body (RFC 2046, 5.1), or a plain application/dicom body itself.

    Raises:
        PacsError: `pacs_answer` where there is no part, more than one, or no closing boundary (cut off).
    """
    header = email.message.Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == "application/dicom":
        return body
    boundary = header.get_boundary()
    if header.get_content_maintype() != "multipart" or not boundary or not boundary.isascii():
        raise PacsError("pacs_answer")
    delimiter = b"--" + boundary.encode()
    opening = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1
    start = body.find(b"\r\n\r\n", opening) + 4
    end = body.find(b"\r\n" + delimiter, start)
    closing = end + 2 + len(delimiter)
    if not body.startswith(delimiter, opening) or start < 4 or end < 0 or body[closing : closing + 2] != b"--":  # noqa: PLR2004  (4: the blank line found)
        raise PacsError("pacs_answer")
    return body[start:end]


def records_of(body: bytes) -> list[dict[str, Any]]:
    """Return the objects of a search answer.

    Raises:
        PacsError: `pacs_answer` where the body is no JSON list of objects.
    """
    try:
        records = json.loads(body)
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise PacsError("pacs_answer")
    return records


def text_of(record: Mapping[str, Any], tag: str) -> str:
    """Return the first value of a tag in DICOM JSON (PS3.18, annex F), "" where there is none."""
    element = record.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else None
    return first.strip(" \0") if isinstance(first, str) else ""
