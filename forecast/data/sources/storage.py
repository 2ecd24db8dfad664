"""Files on a disk or in S3: finding those of a path, and opening them."""

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecast.data.sources.file_systems import S3, Bucket, Disk, File, Kind
from forecast.errors import DataError


@dataclass(frozen=True)
class Location:
    """A path given by the user: a file, a folder, a glob, or one of these in S3."""

    path: str
    label: str
    """Its name in messages: data.path=panel.parquet."""
    _system: Any
    """The Disk or Bucket of the path."""

    @classmethod
    def of(cls, path: str, label: str) -> "Location":
        """Return the location of `path`. Nothing is opened, but AWS may be asked for the region of a bucket."""
        scheme, separator, address = path.partition("://")
        if not separator:
            return cls(path, label, Disk())
        if f"{scheme}{separator}" != S3 or not address.strip("/"):
            raise DataError(
                f"{label}: not an address that can be read; give a path, or s3://bucket/folder/file.parquet"
            )
        location = cls(path, label, None)
        try:
            return cls(path, label, Bucket(_s3(address.split("/")[0])))
        except OSError as error:
            raise location.failure(error) from None

    @property
    def options(self) -> dict[str, str | int] | None:
        """Options for Polars and Delta Lake to read S3 (None on a disk): credentials, short timeouts, few retries."""
        return storage_options(self.path)

    def find(self, pattern: "re.Pattern[str]") -> tuple[str, list[File]]:
        """Return the folder that contains the files, and the files, sorted; `pattern` matches the names of tables.

        A path to a single file is returned whatever its name. Raises DataError if there is no file.
        """
        try:
            return self._find(pattern)
        except OSError as error:
            raise self.failure(error) from None

    def has_folder(self, name: str) -> bool:
        """Return whether the path is a folder with a folder of this name in it."""
        try:
            return self._system.kind(f"{self._inside}/{name}") is Kind.FOLDER
        except OSError as error:
            raise self.failure(error) from None

    def is_file(self, address: str) -> bool:
        """Return whether there is a file at an address."""
        try:
            return self._system.kind(address.removeprefix(S3)) is Kind.FILE
        except OSError as error:
            raise self.failure(error) from None

    def read(self, address: str) -> bytes:
        """Return the content of a file. Raises OSError."""
        with self.open(address) as file:
            content: bytes = file.read()
        return content

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file in a folder, by name. Raises OSError."""
        files = self._system.files(folder.removeprefix(S3), recursive=False)
        return {file.address.rpartition("/")[2]: file.size for file in files}

    def open(self, address: str) -> Any:
        """Return a binary file that reads a file from its start, uncompressed."""
        return self._system.open(address.removeprefix(S3))

    def open_random_access(self, address: str) -> Any:
        """Return a binary file with random access to a file."""
        return self._system.open_random_access(address.removeprefix(S3))

    def failure(self, error: Exception) -> DataError:
        """Return the error for a location that can't be listed or opened."""
        return DataError(explain(self.label, self.path, error))

    @property
    def _inside(self) -> str:
        """The path without s3://."""
        return self.path.removeprefix(S3).rstrip("/") or self.path

    def _find(self, table_pattern: "re.Pattern[str]") -> tuple[str, list[File]]:
        kind = self._system.kind(self._inside)
        if kind is Kind.FOLDER:
            below = self._system.files(self._inside, recursive=True)
            start = len(self._inside.rstrip("/")) + 1
            # Other programs use such names for temporary files, logs and markers.
            visible_files = [file for file in below if not re.search(r"(^|/)[._]", _inner(file)[start:])]
            files = [file for file in visible_files if table_pattern.search(file.address)]
            if not files:
                raise DataError(f"{self.label}: no Parquet, CSV or Arrow file in this folder")
            return self._inside, files
        if kind is not None:
            return str(Path(self._inside).parent), [self._system.file(self._inside)]

        root, pattern = _split_glob(self._inside)
        if not pattern:
            files = []
        elif self.path.startswith(S3):
            deep = "/" in pattern or "**" in pattern
            below = self._system.files(root, recursive=deep)
            matches = _glob_pattern(pattern)
            files = [file for file in below if matches.fullmatch(_inner(file)[len(root) + 1 :])]
        else:
            # Path.glob takes no absolute pattern.
            names = sorted(name for name in glob.glob(self.path, recursive=True) if Path(name).is_file())  # noqa: PTH207
            files = [self._system.file(name) for name in names]
        if files:
            return root, [file for file in files if table_pattern.search(file.address)] or files
        if not self.path.startswith(S3):
            raise DataError(f"{self.label}: no such file or folder (from {Path.cwd()})")
        bucket = self._inside.split("/")[0]
        if self._system.kind(bucket) is None:
            raise OSError("NO_SUCH_BUCKET")
        raise DataError(f"{self.label}: no such file or folder in the bucket {bucket!r}")


def storage_options(path: str) -> dict[str, str | int] | None:
    """Return the options of `Location.options` for an address, None for a path on a disk."""
    if "://" not in path:
        return None
    limits: dict[str, str | int] = {"connect_timeout": "5s", "timeout": "60s", "max_retries": 3}
    if not path.startswith(S3):
        return limits
    credentials = {f"aws_{name}": value for name, value in _environment().items()}
    if credentials.get("aws_endpoint_url", "").startswith("http://"):
        credentials["aws_allow_http"] = "true"
    return {**credentials, **limits}


def explain(label: str, path: str, error: Exception, action: str = "read") -> str:
    """Return the message for a path that can't be read or written: what to check; `action` is read or written."""
    text = re.sub(r"retry_timeout: \w+", "", str(error).partition("\n\nDebug source")[0])
    line = _without_secrets(text.splitlines()[0])
    if not path.startswith(S3):
        return f"{label} can't be {action}: {line}"
    bucket = path.removeprefix(S3).split("/")[0]
    endpoint = _environment().get("endpoint_url", "AWS")
    if re.search("NO_SUCH_BUCKET|NoSuchBucket|Bucket '", text):
        return f"{label}: there is no bucket {bucket!r} at {endpoint}"
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|\b40[13]\b", text, re.IGNORECASE):
        return (
            f"{label}: {endpoint} refuses access to the bucket {bucket!r}; check the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) and what they may "
            f"{'read' if action == 'read' else 'write'}"
        )
    if re.search("NETWORK_CONNECTION|curlCode|timed? ?out|error sending request", text, re.IGNORECASE):
        return f"{label}: {endpoint} does not answer; check AWS_ENDPOINT_URL, AWS_REGION and the network"
    return f"{label} can't be {action} {'from' if action == 'read' else 'to'} {endpoint}: {line}"


def _inner(file: File) -> str:
    return file.address.removeprefix(S3)


def _split_glob(path: str) -> tuple[str, str]:
    """Return the last folder before any wildcard, and the remaining pattern, which is empty without wildcards.

    >>> _split_glob("a/b/c=*/d.csv")
    ('a/b', 'c=*/d.csv')
    """
    wildcard = re.search(r"[*?\[]", path)
    if not wildcard:
        return path, ""
    root, _, prefix = path[: wildcard.start()].rpartition("/")
    return root, prefix + path[wildcard.start() :]


def _glob_pattern(pattern: str) -> "re.Pattern[str]":
    """Return a glob as a regular expression.

    >>> [bool(_glob_pattern("**/p=*/?.csv").fullmatch(path)) for path in ("x/y/p=1/a.csv", "p=1/a.csv", "p=1/b/a.csv")]
    [True, True, False]
    """
    expressions = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    return re.compile(
        "".join(expressions.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in parts)
    )


def _environment() -> dict[str, str]:
    """Return the S3 settings of the environment, under the names of AWS tools."""
    names: Mapping[str, tuple[str, ...]] = {
        "access_key_id": ("AWS_ACCESS_KEY_ID",),
        "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
        "session_token": ("AWS_SESSION_TOKEN",),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    }
    settings = {key: next(filter(None, map(os.environ.get, variables)), "") for key, variables in names.items()}
    if not (settings["access_key_id"] and settings["secret_access_key"]):
        # A profile or role may have complete credentials.
        settings |= {"access_key_id": "", "secret_access_key": "", "session_token": ""}
    return {key: value for key, value in settings.items() if value}


def _s3(bucket: str) -> Any:
    from pyarrow import fs

    settings = _environment()
    region, endpoint = settings.get("region"), settings.get("endpoint_url")
    return fs.S3FileSystem(
        access_key=settings.get("access_key_id"),
        secret_key=settings.get("secret_access_key"),
        session_token=settings.get("session_token"),
        region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket)),
        endpoint_override=endpoint,
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _without_secrets(text: str) -> str:
    for name in ("secret_access_key", "session_token"):
        secret = _environment().get(name)
        text = text.replace(secret, "***") if secret else text
    return text
