"""Reads the XML of an S3 answer as a stream of elements, and nothing that XML can do beyond.

Expat of the standard library: for this shape it costs what lxml costs, it needs no tree in memory, and one
handler refuses every document type, so that nobody can define an entity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, Never
from xml.parsers import expat

#: An answer that ends no element for this long is not one of S3's; it bounds the parser's memory too.
_UNENDED_BYTES_MAX: Final = 1 << 20
_BAD_CHARACTER: Final = {
    expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN],
    expat.errors.codes[expat.errors.XML_ERROR_BAD_CHAR_REF],
}


class NotXml(Exception):
    """The bytes are no XML, or XML that no S3 server writes."""


class BadCharacter(NotXml):
    """Bytes that XML cannot carry; a server that does not encode its keys writes them."""


class CutShort(NotXml):
    """The bytes end before the document does."""


class Markup:
    """Push bytes in, get elements out.

    `texts` holds, for each element's name, the text of the one that ended last: its content where it holds
    no elements.  Whenever an element `each` has ended, `on_each` is called, and may take out what it held.
    """

    def __init__(self, each: str = "", on_each: Callable[[], None] | None = None) -> None:
        self.root = ""  #: name of the outermost element, once it was seen
        self.open = ""  #: name of the element that began last
        self.texts: dict[str, str] = {}
        self._unended_bytes = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.ordered_attributes = True
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        text: list[str] = []
        texts = self.texts

        # Closures and not methods: these run twenty times for each key of a listing.
        def start(name: str, _attributes: list[str]) -> None:
            text.clear()
            self.open = name

        def start_root(name: str, _attributes: list[str]) -> None:
            self.root = name
            self._parser.StartElementHandler = start

        def end(name: str) -> None:
            self._unended_bytes = 0
            if name == each and on_each:
                on_each()
            else:
                texts[name] = "".join(text)
            text.clear()

        self._parser.StartElementHandler = start_root
        self._parser.CharacterDataHandler = text.append
        self._parser.EndElementHandler = end

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            NotXml: they do not go on as S3 would.
        """
        self._unended_bytes += len(data)
        self._parse(data, last=False)
        if self._unended_bytes > _UNENDED_BYTES_MAX:
            raise NotXml(f"no element ends within {_UNENDED_BYTES_MAX} bytes")

    def close(self) -> None:
        """Say that no more bytes come.

        Raises:
            NotXml: the document is not whole (CutShort) or ends as S3 would not.
        """
        self._parse(b"", last=True)

    def _parse(self, data: bytes, *, last: bool) -> None:
        try:
            self._parser.Parse(data, last)
        except expat.ExpatError as error:
            if error.code in _BAD_CHARACTER:
                raise BadCharacter(f"a byte that XML cannot carry, in <{self.open}>") from error
            reason = expat.ErrorString(error.code)
            raise (CutShort("it ends in the middle") if last else NotXml(reason)) from error

    def _refuse_doctype(self, *_declaration: object) -> Never:
        raise NotXml("it declares a document type")


def leaves(body: bytes) -> tuple[str, dict[str, str]]:
    """A small document as its root's name and the texts of its elements by name, as far as it can be read.

    S3's errors repeat the key behind what matters, and there a key may be what XML cannot carry.
    """
    markup = Markup()
    with contextlib.suppress(NotXml):
        markup.feed(body)
    return markup.root, markup.texts
