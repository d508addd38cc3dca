"""XMP too long for one segment of a JPEG: merged from its main and extended packet, and split into them.

XMP specification part 3, 1.1.3.1. Standard library only.
"""

from __future__ import annotations

import hashlib
from typing import Any

from yonos_trt.images.xmp_names import XMP_NOTE
from yonos_trt.images.xmp_tree import (
    RDF,
    XMLNS,
    XmpError,
    attributes,
    forget_namespaces,
    is_element,
    parse,
    remove,
    remove_where,
    tree_bytes,
)


def _rdf_of(tree: Any) -> Any:
    found = tree.getElementsByTagNameNS(RDF, "RDF")
    if not found:
        raise XmpError("it holds no rdf:RDF")
    return found[0]


def _declarations(element: Any) -> dict[str, str]:
    """Namespace declarations in force inside an element: attribute name -> URI."""
    declared: dict[str, str] = {}
    while element is not None and is_element(element):
        for attribute in element.attributes.values():
            if attribute.namespaceURI == XMLNS:
                declared.setdefault(attribute.name, attribute.value)
        element = element.parentNode
    return declared


def _adopt(rdf: Any, description: Any) -> Any:
    """Copy a description of another tree, with the namespaces it uses, to the end of ``rdf``."""
    copy = rdf.ownerDocument.importNode(description, True)
    for name, uri in _declarations(description).items():
        if not copy.hasAttribute(name):
            copy.setAttributeNS(XMLNS, name, uri)
    rdf.appendChild(copy)
    return copy


def merged(main: bytes, extension: bytes) -> bytes:
    """Return one packet of a JPEG's main and extended XMP.

    Raises
    ------
    XmpError
        One of them is not XMP.
    """
    tree, other = parse(main), parse(extension)
    rdf = _rdf_of(tree)
    for child in list(_rdf_of(other).childNodes):
        if is_element(child):
            _adopt(rdf, child)
    remove_where(tree, lambda node: node.namespaceURI == XMP_NOTE)
    forget_namespaces(tree, frozenset((XMP_NOTE,)))
    return tree_bytes(tree)


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

    tree = parse(xmp)
    rdf = _rdf_of(tree)
    extension = minidom.parseString(
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()
    )
    descriptions = [child for child in rdf.childNodes if is_element(child)]
    properties = []
    for description in descriptions:
        for node in (*description.childNodes, *attributes(description)):
            if (is_element(node) or node.nodeType == node.ATTRIBUTE_NODE) and node.namespaceURI != RDF:
                length = len(node.toxml() if is_element(node) else node.value)
                properties.append((length, description, node))
    properties.sort(key=lambda entry: -entry[0])
    note = 'xmlns:xmpNote="{}" xmpNote:HasExtendedXMP="{}"'.format(XMP_NOTE, 32 * "0")
    while len(tree_bytes(tree)) + len(note) + 1 > room_bytes and properties:
        _, description, node = properties.pop(0)
        moved = _adopt(_rdf_of(extension), description.cloneNode(False))
        for attribute in attributes(moved):
            if attribute.namespaceURI != RDF:
                moved.removeAttributeNode(attribute)
        for name, uri in _declarations(description).items():
            moved.setAttributeNS(XMLNS, name, uri)
        if is_element(node):
            moved.appendChild(extension.importNode(node, True))
        else:
            moved.setAttributeNS(node.namespaceURI, node.name, node.value)
        remove(node)
    second = tree_bytes(extension)
    digest = hashlib.md5(second, usedforsecurity=False).hexdigest().upper()
    descriptions[0].setAttributeNS(XMLNS, "xmlns:xmpNote", XMP_NOTE)
    descriptions[0].setAttributeNS(XMP_NOTE, "xmpNote:HasExtendedXMP", digest)
    first = tree_bytes(tree)
    if len(first) > room_bytes:
        raise XmpError("it cannot be split into parts that fit")
    return first, second
