"""Checks of values that several kinds share; each returns field errors."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.errors import Cause, invalid_value, not_supported, required

if TYPE_CHECKING:
    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.values import Obj

PORT_MAX = 65535
PROTOCOLS = ("SCTP", "TCP", "UDP")
NAME_MAX = 253
LABEL_MAX = 63
BAD_PORT = "must be between 1 and 65535, inclusive"
BAD_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
BAD_COUNT = "must be greater than or equal to 0"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?!.*--)[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  "
    "or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_LABEL_NAMED = {"Namespace", "Service"}


def check_label_name(field: str, name: str) -> list[Cause]:
    """Check a name that must be a DNS label."""
    if len(name) > LABEL_MAX:
        return [invalid_value(field, name, f"must be no more than {LABEL_MAX} characters")]
    return [] if _LABEL.fullmatch(name) else [invalid_value(field, name, _LABEL_TEXT)]


def check_metadata(resource: Resource, obj: Obj) -> list[Cause]:
    """Check the name and the labels."""
    metadata = obj["metadata"]
    name = metadata.get("name", "")
    found: list[Cause] = []
    if not name:
        found.append(required("metadata.name", "name or generateName is required"))
    elif resource.kind in _LABEL_NAMED:
        found += check_label_name("metadata.name", name)
    elif len(name) > NAME_MAX:
        text = f"must be no more than {NAME_MAX} characters"
        found.append(invalid_value("metadata.name", name, text))
    elif not _SUBDOMAIN.fullmatch(name):
        found.append(invalid_value("metadata.name", name, _SUBDOMAIN_TEXT))
    for value in (metadata.get("labels") or {}).values():
        if len(value) > LABEL_MAX:
            text = f"must be no more than {LABEL_MAX} characters"
            found.append(invalid_value("metadata.labels", value, text))
        elif not _LABEL_VALUE.fullmatch(value):
            found.append(invalid_value("metadata.labels", value, _VALUE_TEXT))
    return found


def is_port(value: object) -> bool:
    """Whether this is a port number."""
    return isinstance(value, int) and 1 <= value <= PORT_MAX


def check_port(field: str, value: int) -> list[Cause]:
    """Check a port number."""
    return [] if is_port(value) else [invalid_value(field, value, BAD_PORT)]


def check_port_or_name(field: str, value: int | str) -> list[Cause]:
    """Check a port number or the name of one (IANA_SVC_NAME)."""
    if isinstance(value, int):
        return check_port(field, value)
    if len(value) > 15:
        return [invalid_value(field, value, "must be no more than 15 characters")]
    if not _PORT_NAME.fullmatch(value) or not re.search("[a-z]", value):
        text = "must contain at least one letter (a-z) and only lower case letters, digits or '-'"
        return [invalid_value(field, value, text)]
    return []


def check_protocol(field: str, value: str) -> list[Cause]:
    """Check a transport protocol."""
    return [] if value in PROTOCOLS else [not_supported(field, value, PROTOCOLS)]


def check_ip(field: str, value: str) -> list[Cause]:
    """Check an IP address."""
    try:
        ip_address(value)
    except ValueError:
        return [invalid_value(field, value, BAD_IP)]
    return []


def check_one_of(field: str, value: object, options: tuple[str, ...]) -> list[Cause]:
    """Check a value against an enumeration."""
    return [] if value in options else [not_supported(field, value, options)]


def check_count(field: str, value: int) -> list[Cause]:
    """Check a number of something."""
    return [] if value >= 0 else [invalid_value(field, value, BAD_COUNT)]


_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def check_selector(field: str, selector: Obj) -> list[Cause]:
    """Check a metav1.LabelSelector."""
    found: list[Cause] = []
    for index, term in enumerate(selector.get("matchExpressions") or ()):
        path = f"{field}.matchExpressions[{index}]"
        operator, values = term.get("operator", ""), term.get("values") or ()
        if not term.get("key"):
            found.append(required(f"{path}.key"))
        if operator not in _OPERATORS:
            text = "not a valid selector operator"
            found.append(invalid_value(f"{path}.operator", operator, text))
        elif operator in ("In", "NotIn") and not values:
            text = "must be specified when `operator` is 'In' or 'NotIn'"
            found.append(required(f"{path}.values", text))
    return found
