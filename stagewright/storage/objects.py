"""The door to object stores (S3, Google Cloud Storage, Azure): opens one by its URL, and explains its errors.

The library is obstore (extra ``cloud``), imported only when a URL is opened; who has a store calls ``obstore.put``,
``obstore.get`` and so on directly. Credentials, region and endpoint come from the environment variables of the stores, or from
the machine's role; profiles and single sign-on need boto3, which is asked only if ``AWS_PROFILE`` is set.

Two conventions. obstore's own retries are few and short, because whoever transfers much here has a queue that retries. And a
bucket that does not exist raises the same FileNotFoundError as an object that does not exist, so ask :func:`is_missing`; a HEAD
request cannot tell the two apart at all.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stagewright.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3CredentialProvider

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "file", "memory")
"""What URLs of stores begin with; ``file:///`` is a folder of this machine, ``memory:///`` is gone with the process."""
TIMEOUT = "STAGEWRIGHT_STORE_TIMEOUT"
"""Variable: seconds without any answer after which a request has failed; 60 if it is not set."""
PART_BYTES = 8 << 20
"""Size of a part of a multipart upload."""
CONCURRENCY = 4
"""Parts in transfer at the same time: few, so that on a slow link each ends before the timeout."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt of what a user waits for."""
GET_PRICE = 0.0004
"""Dollars for 1,000 requests that read: the price of S3 in us-east-1."""
_MOST_PARTS = 9_000

_URL = re.compile(r"([a-z][a-z0-9]*)://(.*)", re.DOTALL)
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER"
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")

PASSING = ("slow", "unreachable", "other")
"""Kinds of errors after which the same request may succeed."""
Kind = Literal["no bucket", "no rights", "credentials", "expired", "region", "slow", "unreachable", "missing", "other"]
"""What an error of a store means."""


def is_remote(text: str) -> bool:
    """Returns whether ``text`` is the URL of an object store (:data:`SCHEMES`), and not the path of a file or folder."""
    found = _URL.fullmatch(text)
    return found is not None and found[1] in SCHEMES


def open_store(url: str, *, allow_http: bool = False) -> ObjectStore:
    """Returns the obstore store of ``url``; the path behind the bucket becomes the prefix of all names.

    Contacts nothing. StorageError for a URL that is none of a store, for an endpoint with ``http://`` unless ``allow_http`` or
    ``AWS_ALLOW_HTTP=true``, and without the extra ``cloud``.
    """
    found = _URL.fullmatch(url)
    if found is None or found[1] not in SCHEMES or (found[1] != "memory" and not found[2].strip("/")):
        raise StorageError(f"{url} is not the URL of an object store", _FORMS, "write it out, with the bucket")
    scheme = found[1]
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise StorageError(
            f"{url} needs obstore, which is not installed ({error})",
            "the extra cloud",
            "pip install 'stagewright[cloud]'",
        ) from None
    http = _allows_http(scheme, url, allow_http)
    try:
        if scheme == "memory":
            return from_url("memory:///")
        if scheme == "file":
            return from_url(url, mkdir=True)
        options: dict[str, Any] = {"client_options": _client_options(http), "retry_config": _retries()}
        if scheme == "s3" and (profile := _profile(url)) is not None:
            options["credential_provider"] = profile
        return from_url(url, **options)
    except (BaseError, ValueError, OSError) as error:
        raise StorageError(
            f"{url} cannot be opened: {first_line(error)}", _FORMS, "correct the URL or the variables"
        ) from error


def patiently(do: Callable[[], T], *, pauses: Sequence[float] | None = None) -> T:
    """Returns ``do()``, called again after each of ``pauses`` (seconds; None: :data:`PAUSES`) where the store is busy or cannot
    be reached: it may recover soon. What is wrong in another way is raised at once."""
    for wait in PAUSES if pauses is None else pauses:
        try:
            return do()
        except Exception as error:  # obstore's errors have no common type with the built-in ones that it raises
            if not is_passing(error):
                raise
        time.sleep(wait)
    return do()


def is_passing(error: BaseException) -> bool:
    """Returns whether ``error``, of a function of obstore, may be gone in a moment: the same request may then succeed."""
    return type(error).__module__.startswith("obstore") and kind_of(error) in PASSING


def part_bytes(size: int) -> int:
    """Returns the ``chunk_size`` for ``obstore.put`` of a file of ``size`` bytes, since stores limit the number of parts."""
    return max(PART_BYTES, -(-size // _MOST_PARTS))


def is_missing(error: BaseException) -> bool:
    """Returns whether ``error`` means that the object is not there, while its bucket is."""
    return kind_of(error) == "missing"


def price_of(requests: int) -> str:
    """Returns the dollars for so many requests that read, as a text (:data:`GET_PRICE`)."""
    return f"{requests / 1000 * GET_PRICE:,.4f}"


def kind_of(error: BaseException) -> Kind:
    """Returns what ``error``, raised by a function of obstore, means."""
    text = str(error)
    code = found[1] if (found := _CODE.search(text)) else ""
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    if code in ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted") or "bucket does not exist" in text:
        return "no bucket"
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed"):
        return "expired"
    if code in ("AuthorizationHeaderMalformed", "PermanentRedirect") or "without LOCATION" in text or status == 301:
        return "region"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed") or status == 401:
        return "credentials"
    if "169.254.169.254" in text or "metadata.google" in text or type(error).__name__ == "UnauthenticatedError":
        return "credentials"
    if status == 403 or isinstance(error, PermissionError) or type(error).__name__ == "PermissionDeniedError":
        return "no rights"
    if code in ("SlowDown", "ServerBusy", "TooManyRequests") or status in (429, 503):
        return "slow"
    if "HTTP error" in text and not status:
        return "unreachable"
    return "missing" if isinstance(error, FileNotFoundError) else "other"


def explain(error: BaseException, url: str, doing: str, right: str = "") -> StorageError:
    """Returns the error to raise for ``error`` of obstore, met while ``doing`` (such as "writing owner.json") at ``url``.

    ``right`` names the permission that the operation needs, such as ``s3:PutObject``.
    """
    given = f"{url}: {doing} failed"
    match kind_of(error):
        case "no bucket":
            return StorageError(f"{given}: no such bucket", "a bucket that exists", "create it, or correct the name")
        case "no rights":
            needed = right or "the rights to put, get, list and delete"
            return StorageError(
                f"{given}: no rights (access denied)", f"credentials with {needed}", "add this right to the key or role"
            )
        case "credentials":
            return StorageError(
                f"{given}: there are no valid credentials ({first_line(error)})",
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the variables of the other stores), AWS_PROFILE, or a role",
                "set them, and try again",
            )
        case "expired":
            return StorageError(
                f"{given}: the credentials have expired", "valid credentials", "renew them, and try again"
            )
        case "region":
            wanted = re.search(r"expecting '([\w-]+)'", str(error))
            return StorageError(
                f"{given}: the bucket is in another region",
                f"AWS_REGION={wanted[1] if wanted else 'REGION'}, the bucket's region",
                "set AWS_REGION to it",
            )
        case "slow":
            return StorageError(
                f"{given}: the store asks to slow down or is busy", "a store that answers", "try again later"
            )
        case "unreachable":
            return StorageError(
                f"{given}: the store cannot be reached ({first_line(error)})",
                "an endpoint that answers (AWS_ENDPOINT_URL, if it is not Amazon's)",
                "look at the network and the endpoint, then try again",
            )
        case "missing":
            return StorageError(f"{given}: there is no such object", "an object that exists", "correct the name")
    return StorageError(f"{given}: {first_line(error)}", "a store that answers", "try again later")


def first_line(error: BaseException) -> str:
    """Returns the message of ``error`` in one line: code and message of the store, or the cause, without the library's dump."""
    text = str(error).partition("\n\nDebug source")[0]
    code = _CODE.search(text)
    if code is not None:
        message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
        return f"{code[1]}: {message[1].strip()}" if message else code[1]
    return " ".join(text.split())[:300] or type(error).__name__


def _allows_http(scheme: str, url: str, allow_http: bool) -> bool:
    """Returns whether connections without TLS are allowed; StorageError if the endpoint needs one and they are not."""
    allowed = allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    for name in _ENDPOINTS.get(scheme, ()):
        if (endpoint := os.environ.get(name, "")).lower().startswith("http://") and not allowed:
            raise StorageError(
                f"{url}: the endpoint {endpoint} ({name}) is not encrypted",
                "an endpoint with https://",
                "if everybody on the way may read it, such as a server on this machine: --allow-http or AWS_ALLOW_HTTP=true",
            )
    return allowed or os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")


def _client_options(allow_http: bool) -> ClientConfig:
    given = os.environ.get(TIMEOUT, "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise StorageError(f"{TIMEOUT}={given}", "seconds, 0.1 to 3600", "correct the variable, or unset it")
    silent = timedelta(seconds=seconds)
    return {
        "allow_http": allow_http,
        "connect_timeout": min(silent, timedelta(seconds=10)),
        "read_timeout": silent,
        # Of a whole request; it must leave time for a body that is long and comes slowly but steadily.
        "timeout": timedelta(hours=1),
    }


def _retries() -> RetryConfig:
    return {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=5),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
    }


def _profile(url: str) -> S3CredentialProvider | None:
    """Returns the credentials of ``AWS_PROFILE`` if it is set and no key is; they are renewed when they expire."""
    name = os.environ.get("AWS_PROFILE")
    if not name or os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    try:
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StorageError(
            f"{url} with AWS_PROFILE={name} needs boto3, which is not installed ({error})",
            "boto3, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in place of the profile",
            "pip install boto3",
        ) from None
    try:
        return Boto3CredentialProvider(Session(profile_name=name))
    except Exception as error:  # botocore raises various types: no such profile, sign-on expired
        raise StorageError(
            f"{url}: the profile {name} of AWS_PROFILE gives no credentials: {first_line(error)}",
            "a profile of ~/.aws/config with valid credentials",
            f"correct its name, or sign on again: aws sso login --profile {name}",
        ) from error
