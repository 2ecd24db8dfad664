"""Objects in a store (S3, Google Cloud Storage, Azure): conditional writes, hashes and lists."""

import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.files import file_hash, write_bytes_atomic
from forecast.data.sources.file_systems import S3
from forecast.data.sources.storage import explain, storage_options
from forecast.errors import ConfigError, OutputError
from forecast.names import OBJECT_STORES

_THREADS: Final = 8
_SHA256: Final = "sha256"
# Seconds for a request that sends a part.
_TIMEOUT: Final = "300s"

Content = bytes | Path
"""Bytes, or a file with them."""


def is_object_store(address: object) -> bool:
    """Return whether an address names a place in an object store."""
    return str(address).startswith(OBJECT_STORES)


class ObjectStore:
    """The objects below an address such as s3://bucket/folder; their names are relative to it.

    Credentials and endpoint are those of the environment, as AWS tools name them. Objects carry the SHA-256 of their
    content as metadata. Failures are OutputErrors that name the setting `key`.
    """

    def __init__(self, uri: str, key: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise ConfigError(f"{key}={uri} needs: pip install 'gatecast[s3]'") from None
        self.uri = uri.rstrip("/")
        self._label, self._obstore, self._options = f"{key}={self.uri}", obstore, storage_options(uri) or {}
        config: Any = {name: value for name, value in self._options.items() if name.startswith("aws_")}
        if uri.startswith(S3) and not {"aws_region", "aws_endpoint_url"} & config.keys():
            config["aws_region"] = _region(uri)
        client: Any = {"connect_timeout": self._options["connect_timeout"], "timeout": _TIMEOUT}
        if config.pop("aws_allow_http", None):
            client["allow_http"] = True
        retry: Any = {"max_retries": self._options["max_retries"]}
        with self._explained():
            self._store: Any = from_url(self.uri, config=config, client_options=client, retry_config=retry)

    def check_writable(self) -> None:
        """Raise OutputError if nothing can be written; call it before hours of work."""
        name = f".check-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.remove([name])

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects below a prefix, a folder, sorted."""
        with self._explained("read"):
            return sorted(item["path"] for page in self._obstore.list(self._store, prefix) for item in page)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of the objects below a prefix, a folder, by name."""
        with self._explained("read"):
            return {item["path"]: item["size"] for page in self._obstore.list(self._store, prefix) for item in page}

    def read(self, name: str) -> bytes | None:
        """Return the content of an object, None if there is none."""
        with self._explained("read"):
            try:
                return bytes(self._obstore.get(self._store, name).bytes())
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def fetch(self, name: str, file: Path) -> bool:
        """Copy an object into a file, and return True; False if its content does not have the hash in its metadata."""
        with self._explained("read"):
            result = self._obstore.get(self._store, name)
            digest, content = result.attributes.get(_SHA256), bytes(result.bytes())
        if hashlib.sha256(content).hexdigest() != digest:
            return False
        write_bytes_atomic(content, file)
        return True

    def metadata(self, name: str) -> dict[str, str] | None:
        """Return the metadata of an object, None if there is none."""
        head = self._head(name)
        return None if head is None else dict(head.attributes)

    def sha256(self, name: str) -> str | None:
        """Return the hash of an object, None if there is none; it is read again if its metadata lack the hash."""
        metadata = self.metadata(name)
        if metadata is None or _SHA256 in metadata:
            return (metadata or {}).get(_SHA256)
        hasher = hashlib.sha256()
        with self._explained("read"):
            for block in self._obstore.get(self._store, name):
                hasher.update(block)
        return hasher.hexdigest()

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the hashes of objects, without those that do not exist."""
        names = list(names)
        return {
            name: value for name, value in zip(names, parallel(self.sha256, names, 4 * _THREADS), strict=True) if value
        }

    def put(self, contents: Mapping[str, Content]) -> dict[str, str]:
        """Write objects, a few at a time, and return their hashes.

        An object with the same content stays as it is; another one of the same name is replaced. Raises OutputError,
        also if another job writes the same object at the same time.
        """
        names = list(contents)
        return dict(zip(names, parallel(lambda name: self._put(name, contents[name]), names), strict=True))

    def write(self, name: str, content: Content, metadata: Mapping[str, str] | None = None) -> None:
        """Write an object, whatever there was: readers see the old or the new one."""
        with self._explained():
            self._obstore.put(self._store, name, content, attributes={_SHA256: _hash(content), **(metadata or {})})

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, if they exist."""
        names = list(names)
        with self._explained():
            if names:
                self._obstore.delete(self._store, names)

    def scan(self, name: str) -> pl.LazyFrame:
        """Return the rows of a Parquet file."""
        return pl.scan_parquet(f"{self.uri}/{name}", glob=False, hive_partitioning=False, storage_options=self._options)

    def _put(self, name: str, content: Content) -> str:
        digest = _hash(content)
        put: Any = {"attributes": {_SHA256: digest}, "use_multipart": False}
        exceptions = self._obstore.exceptions
        with self._explained():
            try:
                self._obstore.put(self._store, name, content, mode="create", **put)
            except exceptions.AlreadyExistsError:
                existing = self._head(name)
                if self.sha256(name) == digest:
                    return digest
                mode: Any = _version(existing.meta) if existing else "create"
                try:
                    self._obstore.put(self._store, name, content, mode=mode, **put)
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                    raise OutputError(
                        f"{self._label}: another job writes {name} at the same time; wait for it to end, or choose "
                        "another address"
                    ) from None
        return digest

    def _head(self, name: str) -> Any:
        with self._explained("read"):
            try:
                return self._obstore.get(self._store, name, options={"head": True})
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def _check_bucket(self, error: FileNotFoundError) -> None:
        """Raise OutputError for a missing bucket; an object may be missing."""
        if "NoSuchBucket" in str(error):
            raise OutputError(explain(self._label, self.uri, error)) from None

    @contextmanager
    def _explained(self, action: str = "written") -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise OutputError(explain(self._label, self.uri, error, action)) from None


def parallel(function: Callable[[str], Any], names: Iterable[str], threads: int = _THREADS) -> list[Any]:
    """Return the results of a function for each name, in order; the first error ends the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(function, names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _hash(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return file_hash(content)


def _version(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies the version of an object in a conditional write."""
    return {name: metadata[name] for name in ("e_tag", "version") if metadata[name]}


def _region(uri: str) -> str:
    """Return the region of a bucket in AWS. Raises OutputError."""
    from pyarrow import fs

    bucket = uri.removeprefix(S3).split("/")[0]
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError as error:
        raise OutputError(explain("output.uri", uri, error, "written")) from None


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Return a frame as a Parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
