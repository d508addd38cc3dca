"""XMP cut down to what is true of the upscaled picture, and made true for its size.

A packet that needs no change keeps its bytes. Standard library only.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from yonos_trt.images.xmp_names import (
    CROP,
    LISTS,
    NOT_CARRIED,
    PLACES,
    SCALED,
    SIZES,
    TURNED,
    XMP_NOTE,
    is_not_carried,
)
from yonos_trt.images.xmp_tree import (
    RDF,
    XmpError,
    attributes,
    forget_namespaces,
    is_element,
    key_of,
    nodes,
    parse,
    remove_where,
    set_value,
    tree_bytes,
    value_of,
)

_TIFF = "http://ns.adobe.com/tiff/1.0/"


def orientation_in(xmp: bytes) -> int:
    """Return ``tiff:Orientation``, 1 without a valid one."""
    if b"Orientation" not in xmp and b"O\0r\0i\0e" not in xmp:
        return 1
    try:
        values = [value_of(node) for node in nodes(parse(xmp)) if key_of(node) == (_TIFF, "Orientation")]
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
        tree = parse(xmp)
    except XmpError as error:
        return None, (f"XMP, which cannot be read ({error})",)
    left_out = []
    changed = False
    for node in list(nodes(tree)):
        if key_of(node) == (_TIFF, "Orientation") and value_of(node) != "1":
            set_value(node, "1")
            changed = True
    if gone := remove_where(tree, lambda node: is_not_carried(*key_of(node))):
        left_out.append(f"XMP of other parts of the old file: {', '.join(gone)}")
    turned = orientation != 1
    if gone := remove_where(tree, lambda node: turned and (key_of(node) in TURNED or _is_crop(node))):
        left_out.append(f"XMP places, which are given for the unturned picture: {', '.join(gone)}")
    if gone := remove_where(tree, lambda node: key_of(node) in LISTS and _grown_list(node, 1, 1) is None):
        left_out.append(f"XMP that counts pixels in a way that is not known: {', '.join(gone)}")
    note = remove_where(tree, lambda node: node.namespaceURI == XMP_NOTE)  # long packets are split anew
    if not (changed or left_out or note):
        return xmp, ()
    forget_namespaces(tree, NOT_CARRIED | {XMP_NOTE})
    return tree_bytes(tree), tuple(left_out)


def _is_crop(node: Any) -> bool:
    namespace, name = key_of(node)
    return namespace == CROP and (name.startswith("Crop") or name == "HasCrop")


def grown_xmp(xmp: bytes, height_px: int, width_px: int, source_px: tuple[int, int]) -> bytes:
    """Return XMP (from ``upright_xmp``) whose sizes and places in pixels are those of the new picture."""
    try:
        tree = parse(xmp)
    except XmpError:  # of a PIL image's info, say; it was taken as it is
        return xmp
    scale = {"x": Fraction(width_px, source_px[1]), "y": Fraction(height_px, source_px[0])}
    changed = False
    for node in list(nodes(tree)):
        key, value = key_of(node), value_of(node)
        if key in LISTS and (numbers := _grown_list(node, float(scale["x"]), float(scale["y"]))):
            for place, text in numbers:
                set_value(place, text)
            changed = True
            continue
        new = value
        if value is None:
            if key in PLACES:
                changed = _scale_sequence(node, scale) or changed
            continue
        if key in SIZES:
            new = str(width_px if SIZES[key] == "x" else height_px) if value.strip().isdecimal() else value
        elif key in SCALED and _counts_pixels(node, SCALED[key].unit):
            new = _times(value, scale[SCALED[key].axis])
        if new is not None and new != value:
            set_value(node, new)
            changed = True
    return tree_bytes(tree) if changed else xmp


def _scale_sequence(node: Any, scale: dict[str, Fraction]) -> bool:
    """Scale the items of an ``rdf:Seq``: x, y, width, height, or a diameter."""
    items = [child for child in node.getElementsByTagNameNS(RDF, "li") if value_of(child) is not None]
    for index, item in enumerate(items):
        set_value(item, _times(value_of(item) or "", scale["y" if index % 2 else "x"]))
    return bool(items)


def _grown_list(node: Any, wide: float, high: float) -> list[tuple[Any, str]] | None:
    """Return the nodes whose text changes, with it; None where there is no list of numbers as it should be.

    The list is the items of an ``rdf:Seq``, or ``[...;]number,number,...``.
    """
    value = value_of(node)
    if value is None:
        items = [child for child in node.getElementsByTagNameNS(RDF, "li") if value_of(child) is not None]
        head, texts = "", [value_of(item) or "" for item in items]
    else:
        before, semicolon, rest = value.rpartition(";")
        head, items, texts = before + semicolon, [], rest.split(",")
    powers = LISTS[key_of(node)]
    try:
        factors = [wide**x * high**y for x, y in powers][: len(texts)]
        grown = [f"{float(t) * f:.9g}" for t, f in zip(texts, factors, strict=False)]
    except ValueError:
        return None
    if len(texts) < min(4, len(powers)):
        return None
    grown += texts[len(grown) :]
    return list(zip(items, grown, strict=True)) if value is None else [(node, head + ",".join(grown))]


def _counts_pixels(node: Any, unit: tuple[str, str] | None) -> bool:
    """True unless a unit, beside the entry or in a structure around it, has to say "pixel" and does not."""
    if unit is None:
        return True
    around = node.parentNode if is_element(node) else node.ownerElement
    while around is not None and is_element(around):
        beside = [*attributes(around), *(child for child in around.childNodes if is_element(child))]
        for other in beside:
            if key_of(other) == unit:
                return (value_of(other) or "").strip() == "pixel"
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
