"""XMP: merged from its parts, cut down to what is true of the upscaled picture, and made true for its size.

A packet is parsed, changed where it has to be, and written with its own prefixes; one that needs no change
keeps its bytes. Packets with a document type are not parsed: XMP has none, and it could name other files.
Standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from yonos_trt.images.xmp_names import (
    CROP,
    NOT_CARRIED,
    PLACES,
    SCALED,
    SIZES,
    TURNED,
    USUAL_PREFIXES,
    XMP_NOTE,
    is_not_carried,
)

__all__ = ["XmpError", "grown_xmp", "merged", "orientation_in", "split", "upright_xmp"]

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
# A tree takes some 2 kB for each element and attribute, and several times the length of its text.
_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 1 << 25, 50_000, 100


class XmpError(ValueError):
    """The packet is not well-formed XMP."""


# -- Trees -----------------------------------------------------------------------------------------


def _parse(xmp: bytes) -> Any:
    from xml.dom import minidom
    from xml.parsers.expat import ExpatError

    if len(xmp) > _MOST_BYTES or xmp.count(b"<") + xmp.count(b"=") > _MOST_NODES:
        raise XmpError(f"{len(xmp)} bytes of more entries than a tree is made of")
    if b"<!DOCTYPE" in xmp or b"<\0!\0D\0O\0C\0T" in xmp or b"\0<\0!\0D\0O\0C\0T" in xmp:
        raise XmpError("it has a document type, which XMP has not")
    try:
        tree = minidom.parseString(_declared(xmp.strip(b"\0 \t\r\n")))
        _check_depth(tree)
        return tree
    except XmpError:
        raise
    except (ExpatError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise XmpError(str(error)) from error


def _check_depth(tree: Any) -> None:
    """Refuse what would exhaust the stack of functions that go down a tree."""
    level = [tree]
    for _ in range(_MOST_LEVELS):
        level = [child for node in level for child in node.childNodes if _is_element(child)]
    if level:
        raise XmpError(f"elements are nested deeper than {_MOST_LEVELS} levels")


def _declared(xmp: bytes) -> bytes:
    """Declare well-known prefixes that some programs use without, in the first element."""
    used = {prefix.decode() for prefix in re.findall(rb"[\s<]([A-Za-z][\w-]*):[A-Za-z]", xmp)}
    missing = [p for p in sorted(used & USUAL_PREFIXES.keys()) if f"xmlns:{p}".encode() not in xmp]
    start = re.search(rb"<[A-Za-z][\w:.-]*", xmp)
    if not missing or start is None:
        return xmp
    declarations = "".join(f' xmlns:{prefix}="{USUAL_PREFIXES[prefix]}"' for prefix in missing)
    return xmp[: start.end()] + declarations.encode() + xmp[start.end() :]


def _bytes(tree: Any) -> bytes:
    # minidom writes line ends in attributes as they are, where a parser would make spaces of them. Control
    # characters cannot be in XML, so they can stand in for them.
    for element in tree.getElementsByTagName("*"):
        for attribute in element.attributes.values():
            value = attribute.value.replace("\n", "\1").replace("\r", "\2").replace("\t", "\3")
            if value != attribute.value:
                attribute.value = value
    text = "".join(node.toxml() for node in tree.childNodes)
    return text.replace("\1", "&#10;").replace("\2", "&#13;").replace("\3", "&#9;").encode()


def _attributes(element: Any) -> list[Any]:
    return [a for a in element.attributes.values() if a.namespaceURI and a.namespaceURI != _XMLNS]


def _nodes(tree: Any) -> Iterator[Any]:
    """Yield every element and every attribute that may be a property."""
    for element in tree.getElementsByTagName("*"):
        yield element
        yield from _attributes(element)


def _key(node: Any) -> tuple[str, str]:
    return node.namespaceURI or "", node.localName or ""


def _is_element(node: Any) -> bool:
    return bool(node.nodeType == node.ELEMENT_NODE)


def _value(node: Any) -> str | None:
    """Text of a property; None for one with structure."""
    if not _is_element(node):
        return str(node.value)
    if any(_is_element(child) for child in node.childNodes):
        return None
    return "".join(child.data for child in node.childNodes)


def _set(node: Any, value: str) -> None:
    if _is_element(node):
        for child in list(node.childNodes):
            node.removeChild(child)
        node.appendChild(node.ownerDocument.createTextNode(value))
    else:
        node.value = value


def _remove(node: Any) -> None:
    if not _is_element(node):
        if node.ownerElement is not None:
            node.ownerElement.removeAttributeNode(node)
    elif node.parentNode is not None:
        node.parentNode.removeChild(node)


def _remove_where(tree: Any, condition: Callable[[Any], bool]) -> list[str]:
    """Remove nodes; return their prefixes."""
    gone = [node for node in _nodes(tree) if condition(node)]
    for node in gone:
        _remove(node)
    return sorted({node.prefix or node.localName for node in gone})


def _forget_namespaces(tree: Any, uris: frozenset[str]) -> None:
    """Remove declarations that nothing uses any more."""
    used = {node.namespaceURI for node in _nodes(tree)}
    for element in tree.getElementsByTagName("*"):
        for attribute in list(element.attributes.values()):
            if attribute.namespaceURI == _XMLNS and attribute.value in uris - used:
                element.removeAttributeNode(attribute)


# -- Upright and larger ----------------------------------------------------------------------------


def orientation_in(xmp: bytes) -> int:
    """Return ``tiff:Orientation``, 1 without a valid one."""
    if b"Orientation" not in xmp and b"O\0r\0i\0e" not in xmp:
        return 1
    try:
        values = [_value(node) for node in _nodes(_parse(xmp)) if _key(node) == (_TIFF, "Orientation")]
    except XmpError:
        return 1
    text = (values[0] or "").strip() if values else ""
    return int(text) if text in tuple("12345678") else 1


def upright_xmp(xmp: bytes, orientation: int) -> tuple[bytes | None, tuple[str, ...]]:
    """Return XMP that is true once the pixels have been turned upright, and what was removed from it.

    Parts that describe other pictures of the same file (gain maps, depth, videos, thumbnails) go; of a turned
    picture also regions and crops, which are given for the unturned one.
    """
    try:
        tree = _parse(xmp)
    except XmpError as error:
        return None, (f"XMP, which cannot be read ({error})",)
    left_out = []
    changed = False
    for node in list(_nodes(tree)):
        if _key(node) == (_TIFF, "Orientation") and _value(node) != "1":
            _set(node, "1")
            changed = True
    if gone := _remove_where(tree, lambda node: is_not_carried(*_key(node))):
        left_out.append(f"XMP of other parts of the old file: {', '.join(gone)}")
    turned = orientation != 1
    if gone := _remove_where(tree, lambda node: turned and (_key(node) in TURNED or _is_crop(node))):
        left_out.append(f"XMP places, which are given for the unturned picture: {', '.join(gone)}")
    note = _remove_where(tree, lambda node: node.namespaceURI == XMP_NOTE)  # long packets are split anew
    if not (changed or left_out or note):
        return xmp, ()
    _forget_namespaces(tree, NOT_CARRIED | {XMP_NOTE})
    return _bytes(tree), tuple(left_out)


def _is_crop(node: Any) -> bool:
    namespace, name = _key(node)
    return namespace == CROP and (name.startswith("Crop") or name == "HasCrop")


def grown_xmp(xmp: bytes, height_px: int, width_px: int, source_px: tuple[int, int]) -> bytes:
    """Return XMP (from ``upright_xmp``) whose sizes and places in pixels are those of the new picture."""
    try:
        tree = _parse(xmp)
    except XmpError:  # of a PIL image's info, say; it was taken as it is
        return xmp
    scale = {"x": Fraction(width_px, source_px[1]), "y": Fraction(height_px, source_px[0])}
    changed = False
    for node in list(_nodes(tree)):
        key, value = _key(node), _value(node)
        new = value
        if value is None:
            if key in PLACES:
                changed = _scale_sequence(node, scale) or changed
            continue
        if key in SIZES:
            new = str(width_px if SIZES[key] == "x" else height_px) if value.strip().isdigit() else value
        elif key in SCALED and _counts_pixels(node, SCALED[key].unit):
            new = _times(value, scale[SCALED[key].axis])
        if new is not None and new != value:
            _set(node, new)
            changed = True
    return _bytes(tree) if changed else xmp


def _scale_sequence(node: Any, scale: dict[str, Fraction]) -> bool:
    """Scale the items of an ``rdf:Seq``: x, y, width, height, or a diameter."""
    items = [child for child in node.getElementsByTagNameNS(_RDF, "li") if _value(child) is not None]
    for index, item in enumerate(items):
        _set(item, _times(_value(item) or "", scale["y" if index % 2 else "x"]))
    return bool(items)


def _counts_pixels(node: Any, unit: tuple[str, str] | None) -> bool:
    """True unless a unit, beside the entry or in a structure around it, has to say "pixel" and does not."""
    if unit is None:
        return True
    around = node.parentNode if _is_element(node) else node.ownerElement
    while around is not None and _is_element(around):
        beside = [*_attributes(around), *(child for child in around.childNodes if _is_element(child))]
        for other in beside:
            if _key(other) == unit:
                return (_value(other) or "").strip() == "pixel"
        around = around.parentNode
    return unit[1] == "unit" and node.localName in ("w", "h") and "Dimensions" in (node.namespaceURI or "")


def _times(text: str, factor: Fraction) -> str:
    """A number in its own notation; anything else unchanged."""
    try:
        value = Fraction(text.strip()) * factor
    except (ValueError, ZeroDivisionError):
        return text
    whole = "." not in text and "/" not in text and "e" not in text.lower()
    return str(round(value)) if whole else f"{float(value):.9g}"


# -- Parts -----------------------------------------------------------------------------------------


def _rdf_of(tree: Any) -> Any:
    found = tree.getElementsByTagNameNS(_RDF, "RDF")
    if not found:
        raise XmpError("it holds no rdf:RDF")
    return found[0]


def _declarations(element: Any) -> dict[str, str]:
    """Namespace declarations in force inside an element: attribute name -> URI."""
    declared: dict[str, str] = {}
    while element is not None and _is_element(element):
        for attribute in element.attributes.values():
            if attribute.namespaceURI == _XMLNS:
                declared.setdefault(attribute.name, attribute.value)
        element = element.parentNode
    return declared


def _adopt(rdf: Any, description: Any) -> Any:
    """Copy a description of another tree, with the namespaces it uses, to the end of ``rdf``."""
    copy = rdf.ownerDocument.importNode(description, True)
    for name, uri in _declarations(description).items():
        if not copy.hasAttribute(name):
            copy.setAttributeNS(_XMLNS, name, uri)
    rdf.appendChild(copy)
    return copy


def merged(main: bytes, extension: bytes) -> bytes:
    """Return one packet of a JPEG's main and extended XMP.

    Raises
    ------
    XmpError
        One of them is not XMP.
    """
    tree, other = _parse(main), _parse(extension)
    rdf = _rdf_of(tree)
    for child in list(_rdf_of(other).childNodes):
        if _is_element(child):
            _adopt(rdf, child)
    _remove_where(tree, lambda node: node.namespaceURI == XMP_NOTE)
    _forget_namespaces(tree, frozenset((XMP_NOTE,)))
    return _bytes(tree)


def split(xmp: bytes, room_bytes: int) -> tuple[bytes, bytes | None]:
    """Split a packet into one that fits into ``room_bytes`` and an extension; its longest properties move.

    Raises
    ------
    XmpError
        It is not XMP, or does not fit even so.
    """
    if len(xmp) <= room_bytes:
        return xmp, None
    from xml.dom import minidom

    tree = _parse(xmp)
    rdf = _rdf_of(tree)
    extension = minidom.parseString(
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'.encode()
    )
    descriptions = [child for child in rdf.childNodes if _is_element(child)]
    properties = []
    for description in descriptions:
        for node in (*description.childNodes, *_attributes(description)):
            if (_is_element(node) or node.nodeType == node.ATTRIBUTE_NODE) and node.namespaceURI != _RDF:
                length = len(node.toxml() if _is_element(node) else node.value)
                properties.append((length, description, node))
    properties.sort(key=lambda entry: -entry[0])
    note = 'xmlns:xmpNote="{}" xmpNote:HasExtendedXMP="{}"'.format(XMP_NOTE, 32 * "0")
    while len(_bytes(tree)) + len(note) + 1 > room_bytes and properties:
        _, description, node = properties.pop(0)
        moved = _adopt(_rdf_of(extension), description.cloneNode(False))
        for attribute in _attributes(moved):
            if attribute.namespaceURI != _RDF:
                moved.removeAttributeNode(attribute)
        for name, uri in _declarations(description).items():
            moved.setAttributeNS(_XMLNS, name, uri)
        if _is_element(node):
            moved.appendChild(extension.importNode(node, True))
        else:
            moved.setAttributeNS(node.namespaceURI, node.name, node.value)
        _remove(node)
    second = _bytes(extension)
    digest = hashlib.md5(second, usedforsecurity=False).hexdigest().upper()
    descriptions[0].setAttributeNS(_XMLNS, "xmlns:xmpNote", XMP_NOTE)
    descriptions[0].setAttributeNS(XMP_NOTE, "xmpNote:HasExtendedXMP", digest)
    first = _bytes(tree)
    if len(first) > room_bytes:
        raise XmpError("it cannot be split into parts that fit")
    return first, second
