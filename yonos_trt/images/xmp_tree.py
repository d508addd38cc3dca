"""XMP as a tree: parsed within bounds, its properties found, written again with its own prefixes.

Packets with a document type are not parsed: XMP has none, and it could name other files. Standard library
only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from yonos_trt.images.xmp_names import USUAL_PREFIXES

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMLNS = "http://www.w3.org/2000/xmlns/"
# A tree takes some 2 kB for each element and attribute, and several times the length of its text.
_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 1 << 25, 50_000, 100


class XmpError(ValueError):
    """The packet is not well-formed XMP."""


def parse(xmp: bytes) -> Any:
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
        level = [child for node in level for child in node.childNodes if is_element(child)]
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


def tree_bytes(tree: Any) -> bytes:
    # minidom writes line ends in attributes as they are, where a parser would make spaces of them. Control
    # characters cannot be in XML, so they can stand in for them.
    for element in tree.getElementsByTagName("*"):
        for attribute in element.attributes.values():
            value = attribute.value.replace("\n", "\1").replace("\r", "\2").replace("\t", "\3")
            if value != attribute.value:
                attribute.value = value
    text = "".join(node.toxml() for node in tree.childNodes)
    return text.replace("\1", "&#10;").replace("\2", "&#13;").replace("\3", "&#9;").encode()


def attributes(element: Any) -> list[Any]:
    return [a for a in element.attributes.values() if a.namespaceURI and a.namespaceURI != XMLNS]


def nodes(tree: Any) -> Iterator[Any]:
    """Yield every element and every attribute that may be a property."""
    for element in tree.getElementsByTagName("*"):
        yield element
        yield from attributes(element)


def key_of(node: Any) -> tuple[str, str]:
    return node.namespaceURI or "", node.localName or ""


def is_element(node: Any) -> bool:
    return bool(node.nodeType == node.ELEMENT_NODE)


def value_of(node: Any) -> str | None:
    """Text of a property; None for one with structure."""
    if not is_element(node):
        return str(node.value)
    if any(is_element(child) for child in node.childNodes):
        return None
    return "".join(child.data for child in node.childNodes)


def set_value(node: Any, value: str) -> None:
    if is_element(node):
        for child in list(node.childNodes):
            node.removeChild(child)
        node.appendChild(node.ownerDocument.createTextNode(value))
    else:
        node.value = value


def remove(node: Any) -> None:
    if not is_element(node):
        if node.ownerElement is not None:
            node.ownerElement.removeAttributeNode(node)
    elif node.parentNode is not None:
        node.parentNode.removeChild(node)


def remove_where(tree: Any, condition: Callable[[Any], bool]) -> list[str]:
    """Remove nodes; return their prefixes."""
    gone = [node for node in nodes(tree) if condition(node)]
    for node in gone:
        remove(node)
    return sorted({node.prefix or node.localName for node in gone})


def forget_namespaces(tree: Any, uris: frozenset[str]) -> None:
    """Remove declarations that nothing uses any more."""
    used = {node.namespaceURI for node in nodes(tree)}
    for element in tree.getElementsByTagName("*"):
        for attribute in list(element.attributes.values()):
            if attribute.namespaceURI == XMLNS and attribute.value in uris - used:
                element.removeAttributeNode(attribute)
