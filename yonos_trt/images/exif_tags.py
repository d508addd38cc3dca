"""Which EXIF and TIFF tags describe the picture and travel, and which describe how one file stores it."""

from __future__ import annotations

# Tags of a first directory that are true of the upscaled picture as well. Everything else stays behind:
# copied into a TIFF, a tag this program does not know might say how its pixels are stored.
DESCRIPTIVE = frozenset(
    {
        # document, description, make, model, orientation, resolution, software, date, artist, host
        0x010D, 0x010E, 0x010F, 0x0110, 0x0112, 0x011A, 0x011B, 0x011D, 0x0128, 0x0129, 0x0131, 0x0132,
        0x013B, 0x013C, 0x0213,
        # white point, primaries, ratings, copyright, print image matching
        0x013E, 0x013F, 0x4746, 0x4749, 0x8298, 0xC4A5,
        # Windows: title, comment, author, keywords, subject
        0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
        # exposure, dates, comment, lens: of the EXIF directory, but some programs put them here
        0x829A, 0x829D, 0x8822, 0x8827, 0x8830, 0x9003, 0x9004, 0x9010, 0x9011, 0x9012, 0x9211, 0x920A,
        0x9286, 0x9290, 0x9291, 0x9292, 0xA420, 0xA430, 0xA431, 0xA432, 0xA433, 0xA434, 0xA435,
        # DNG: camera model, serial number, name of the raw file
        0xC614, 0xC615, 0xC62F, 0xC68B,
    }
)  # fmt: skip

# Tags of storage and coding, which every file has for itself; they are written anew and not worth a word.
# Also those that are carried by other means: XMP, IPTC, Photoshop resources, ICC.
CODING = frozenset(
    {
        *range(0x00FE, 0x010B), 0x0111, *range(0x0115, 0x011A), 0x011C, *range(0x0120, 0x0125),
        0x013D, *range(0x0140, 0x014A), *range(0x014C, 0x0151), *range(0x0152, 0x0157), 0x015A, 0x015B,
        *range(0x0200, 0x020A), 0x0211, 0x0212, 0x0214, *range(0x80E3, 0x80E7),
        0x02BC, 0x83BB, 0x8649, 0x8773, 0x9102, 0xEA1C, 0xEA1D,
    }
)  # fmt: skip

# Names for messages that Pillow does not know.
_NAMES = {
    0x014A: "SubIFDs", 0x830E: "ModelPixelScale", 0x8482: "ModelTiepoint", 0x85D8: "ModelTransformation",
    0x87AF: "GeoKeyDirectory", 0x87B0: "GeoDoubleParams", 0x87B1: "GeoAsciiParams", 0xA480: "GDAL_METADATA",
    0xA481: "GDAL_NODATA", 0xC696: "IJMetadataByteCounts", 0xC697: "IJMetadata",
    0x935C: "ImageSourceData (Photoshop layers)",
}  # fmt: skip


def name_of(tag: int) -> str:
    """Return the tag's name, or its number."""
    from PIL.ExifTags import TAGS

    return _NAMES.get(tag) or TAGS.get(tag) or f"0x{tag:04x}"
