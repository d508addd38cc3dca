"""Which XMP properties describe pixels, places in the picture, or other parts of the file."""

from __future__ import annotations

from typing import NamedTuple

_GOOGLE = "http://ns.google.com/photos/1.0/"
_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_PANO = f"{_GOOGLE}panorama/"
_CAMERA = f"{_GOOGLE}camera/"
_REGIONS = "http://www.metadataworkinggroup.com/schemas/regions/"
_AREA, _DIMENSIONS = "http://ns.adobe.com/xmp/sType/Area#", "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_DJI = "http://www.dji.com/drone-dji/1.0/"
_PIX4D = "http://pix4d.com/camera/1.0/"

CROP = "http://ns.adobe.com/camera-raw-settings/1.0/"
XMP_NOTE = "http://ns.adobe.com/xmp/note/"

USUAL_PREFIXES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "tiff": _TIFF,
    "exif": _EXIF,
    "xmp": _XMP,
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "GPano": _PANO,
    "xmpNote": XMP_NOTE,
}
"""Prefixes that mean the same everywhere, for packets that do not declare them."""

NOT_CARRIED = frozenset(
    {
        "http://ns.adobe.com/hdr-gain-map/1.0/",
        "http://ns.apple.com/HDRGainMap/1.0/",
        "http://ns.apple.com/depthData/1.0/",
        "http://ns.apple.com/pixeldatainfo/1.0/",
        "http://ns.apple.com/portrait-effects-matte/1.0/",
        f"{_GOOGLE}container/",
        f"{_GOOGLE}container/item/",
        f"{_GOOGLE}depthmap/",
        f"{_GOOGLE}focus/",
        f"{_GOOGLE}image/",
        "http://ns.google.com/photos/dd/1.0/device/",
        "http://ns.google.com/photos/dd/1.0/container/",
        "http://ns.google.com/photos/dd/1.0/item/",
        "http://ns.google.com/photos/dd/1.0/camera/",
        "http://ns.google.com/photos/dd/1.0/depthmap/",
        "http://ns.google.com/photos/dd/1.0/image/",
        "http://ns.google.com/photos/dd/1.0/profile/",
        "http://ns.xiaomi.com/photos/1.0/camera/",
        _CAMERA,
    }
)
"""Namespaces of gain maps, depth and other pictures in the same file; Google's camera in part."""


def is_not_carried(namespace: str, name: str) -> bool:
    """True for properties that describe something the result does not have."""
    if namespace == _CAMERA:
        return name.startswith(("MotionPhoto", "MicroVideo", "hdrp_makernote", "Depth"))
    return namespace in NOT_CARRIED or (namespace, name) == (_XMP, "Thumbnails")


SIZES = {
    (_TIFF, "ImageWidth"): "x",
    (_TIFF, "ImageLength"): "y",
    (_EXIF, "PixelXDimension"): "x",
    (_EXIF, "PixelYDimension"): "y",
}
"""Properties that say the picture's size -> axis."""

PLACES = frozenset({(_EXIF, "SubjectArea"), (_EXIF, "SubjectLocation"), (_PIX4D, "VignettingCenter")})
"""Sequences of pixel coordinates: x, y, then a size."""


class Scaled(NamedTuple):
    """A number of pixels: along which axis, and the property that says whether its unit is pixels."""

    axis: str
    unit: tuple[str, str] | None = None


SCALED = {
    **{(_PANO, name): Scaled("x") for name in (
        "FullPanoWidthPixels", "CroppedAreaImageWidthPixels", "CroppedAreaLeftPixels",
        "LargestValidInteriorRectLeft", "LargestValidInteriorRectWidth",
    )},
    **{(_PANO, name): Scaled("y") for name in (
        "FullPanoHeightPixels", "CroppedAreaImageHeightPixels", "CroppedAreaTopPixels",
        "LargestValidInteriorRectTop", "LargestValidInteriorRectHeight",
    )},
    (_DIMENSIONS, "w"): Scaled("x", (_DIMENSIONS, "unit")),
    (_DIMENSIONS, "h"): Scaled("y", (_DIMENSIONS, "unit")),
    **{(_AREA, name): Scaled(axis, (_AREA, "unit")) for name, axis in (
        ("x", "x"), ("y", "y"), ("w", "x"), ("h", "y"), ("d", "x"),
    )},
    **{(_IPTC, name): Scaled(axis, (_IPTC, "rbUnit")) for name, axis in (
        ("rbX", "x"), ("rbY", "y"), ("rbW", "x"), ("rbH", "y"), ("rbRx", "x"),
    )},
    (_DJI, "CalibratedFocalLength"): Scaled("x"),
    (_DJI, "CalibratedOpticalCenterX"): Scaled("x"),
    (_DJI, "CalibratedOpticalCenterY"): Scaled("y"),
    (_DJI, "RelativeOpticalCenterX"): Scaled("x"),
    (_DJI, "RelativeOpticalCenterY"): Scaled("y"),
}  # fmt: skip
"""Properties that count pixels."""

_HOMOGRAPHY = ((0, 0), (1, -1), (1, 0), (-1, 1), (0, 0), (0, 1), (-1, 0), (0, -1), (0, 0))
_FALL_OFF = tuple((-power / 2, -power / 2) for power in range(1, 7))  # of the distance, its square, ...

LISTS = {
    (_DJI, "DewarpData"): ((1, 0), (0, 1), (1, 0), (0, 1)),  # fx, fy, cx, cy; then distortion, without unit
    (_DJI, "DewarpHMatrix"): _HOMOGRAPHY,
    (_DJI, "CalibratedHMatrix"): _HOMOGRAPHY,
    (_DJI, "VignettingData"): _FALL_OFF,
    (_PIX4D, "VignettingPolynomial"): _FALL_OFF,
}
"""Lists of numbers -> by which powers of the enlargements along x and y the first of them grow."""

TURNED = frozenset(
    {
        *PLACES,
        *LISTS,
        *(key for key in SCALED if key[0] in (_PANO, _DJI)),
        (_REGIONS, "Regions"),
        ("http://ns.acdsee.com/regions/", "Regions"),
        ("http://ns.microsoft.com/photo/1.2/", "RegionInfo"),
        (_IPTC, "ImageRegion"),
    }
)
"""Properties that are wrong once the picture has been turned."""
