"""One answer to a listing request, read as it comes in: its keys, and what it says of more."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from s5jtd.model import Listed
from s5jtd.s3.markup import BadCharacter, CutShort, Markup, NotXml
from s5jtd.s3.moments import milliseconds
from s5jtd.s3.refusals import NOT_S3

_ROOT: Final = "ListBucketResult"
_SIZE_DIGITS_MAX: Final = 18  # below 2**63, which the ledger can hold


class NotListing(Exception):
    """The answer is no listing, or breaks off, or contradicts itself."""


class UntellableKey(Exception):
    """A key holds bytes that the answer's format cannot carry."""


class Answer:
    """Feed it bytes and take its objects; then ask what it says of more."""

    def __init__(self) -> None:
        self.token = ""
        self.next_marker = b""
        self._rows: list[tuple[str, str, str, str]] = []
        self._count = 0
        self._guessed = False  #: escapes were taken literally before the answer said whether they are
        self._markup = Markup("Contents", self._add)
        self._said = self._markup.texts

    @property
    def held(self) -> int:
        """How many objects were read and not yet taken."""
        return len(self._rows)

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            NotListing: they are no listing.
            UntellableKey: a key cannot be read.
        """
        try:
            self._markup.feed(data)
        except NotXml as error:
            raise self._named(error) from error
        if self._markup.root not in {"", _ROOT}:
            raise NotListing(NOT_S3)

    def close(self) -> None:
        """Say that no more comes.

        Raises:
            NotListing: there should have been more.
        """
        try:
            self._markup.close()
        except NotXml as error:
            raise self._named(error) from error
        self.token = self._said.get("NextContinuationToken", "")
        self.next_marker = self._key(self._said.get("NextMarker", ""))
        if self._guessed and self._is_encoded:
            raise NotListing("its listing says too late that keys are encoded")

    def take(self) -> list[Listed]:
        """The objects read since the last call.

        Some servers say behind the objects whether keys are encoded, so keep them until then if you can.
        """
        rows, self._rows = self._rows, []
        self._count += len(rows)
        if not self._is_encoded:
            self._guessed = self._guessed or any("%" in row[0] or "+" in row[0] for row in rows)
        keys = self._keys([row[0] for row in rows])
        return [
            Listed(key, _size(row[1]), row[2].strip('"'), milliseconds(row[3]))
            for key, row in zip(keys, rows, strict=True)
        ]

    def has_more(self, page_size: int) -> bool:
        """Whether the listing goes on after this answer.

        Where the answer does not say, a full page is taken to be followed by another.
        """
        truncated = self._said.get("IsTruncated", "").strip().lower()
        if truncated not in {"true", "false", ""}:
            raise NotListing(NOT_S3)
        if truncated == "":
            return self._count >= page_size or bool(self.token or self.next_marker)
        return truncated == "true"

    @property
    def _is_encoded(self) -> bool:
        return self._said.get("EncodingType") == "url"

    def _add(self) -> None:
        said = self._said
        key, size = said.pop("Key", ""), said.pop("Size", "")
        if not key:
            raise NotListing("its listing holds an object without a key")
        self._rows.append((key, size, said.pop("ETag", ""), said.pop("LastModified", "")))

    def _keys(self, texts: list[str]) -> list[bytes]:
        """All at once, which is cheaper.  XML carries no NUL: where there is one more, it was in a key."""
        keys = self._key("\0".join(texts)).split(b"\0") if texts else []
        return keys if len(keys) == len(texts) else [self._key(text) for text in texts]

    def _key(self, text: str) -> bytes:
        """A key's bytes; "+" is a space in this encoding, in all servers that write it."""
        if self._is_encoded:
            text = text.replace("%2F", "/")  # in most keys the only escape, and this is the cheaper way
            if "%" in text or "+" in text:
                return unquote_to_bytes(text.replace("+", " "))
        return text.encode()

    def _named(self, error: NotXml) -> Exception:
        """What it means for a listing that this is no XML."""
        if self._markup.root != _ROOT:
            return NotListing(NOT_S3)
        if isinstance(error, BadCharacter) and self._markup.open == "Key":
            return UntellableKey(str(error))
        if isinstance(error, CutShort):
            return NotListing("its listing breaks off in the middle")
        return NotListing(f"its listing cannot be read: {error}")


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS_MAX):
        raise NotListing("its listing holds an object without a size")
    return int(text)
