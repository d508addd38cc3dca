"""What the READMEs of ../shared/cases call right: small inputs of public reports, if they are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

from helpers import make_engine_dir  # noqa: E402
from video_clips import packets, run, shown  # noqa: E402

from yonos_trt.errors import InputError  # noqa: E402
from yonos_trt.images import Picture, read_image, write_image  # noqa: E402
from yonos_trt.images.photoshop import iptc_of, parse_resources  # noqa: E402
from yonos_trt.video import upscale_video  # noqa: E402
from yonos_trt.video.info import frame_planes  # noqa: E402
from yonos_trt.video.layouts import layout_of  # noqa: E402
from yonos_trt.video.sidedata import read_side_data  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = REPOSITORY.parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}")


def twofold(source: Path, target: Path) -> tuple[Picture, tuple[str, ...]]:
    """Write the twofold picture of ``source``; return it as read again, and what was left out."""

    def larger(plane: Any) -> Any:
        return None if plane is None else plane.repeat(2, 0).repeat(2, 1)

    picture = read_image(source)
    left_out = write_image(picture.with_pixels(larger(picture.rgb), larger(picture.alpha)), target)
    return read_image(target), left_out


def never(rgb: Any) -> Any:
    raise AssertionError("a frame was upscaled before the refusal")


def refused(name: str, words: str, target: Path) -> None:
    """Check a refusal before any work."""
    still = Path(name).suffix in (".png", ".jpg", ".tif")
    with pytest.raises(InputError, match=words):
        read_image(CASES / name) if still else upscale_video(CASES / name, target, never, scale=2)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("02-tiff-fourth-band/rgb_nir_16bit.tif", "which would be lost"),
        ("02-tiff-fourth-band/rgb_nir_8bit.tif", "which would be lost"),
        ("02-tiff-fourth-band/rgb_signed16.tif", "signed integer samples"),
        ("03-webm-alpha/vp8a.webm", "has an alpha channel"),
        ("03-webm-alpha/vp9a.webm", "has an alpha channel"),
        ("attack/colour/int16_rgb.tif", "signed integer samples"),
        ("attack/colour/int8_grey.tif", "signed integer samples"),
        ("attack/colour/la8_unspec.tif", "which would be lost"),
        ("attack/colour/rgb5.tif", "which would be lost"),
        ("attack/dos/tiff_depth.tif", "a volume"),
        ("attack/dos/tiff_dirs.tif", "directories overlap"),
        ("attack/dos/tiff_fan_small.tif", "values of its tags overlap"),
        ("attack/cut_eoi.jpg", "cut_eoi.jpg: "),
        ("attack/zero512.jpg", "zero512.jpg: "),
        ("attack/video/cut60.mkv", "cut60.mkv"),
        ("attack/video/unknown_codec.mp4", "codec of its video stream"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    if "jpg" in name:
        pytest.importorskip("imagecodecs")
    refused(name, words, tmp_path / "out.mkv")


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("01-edit-list-trim/elst_4s_to_5s.mp4", 25),
        ("01-edit-list-trim/ffmpeg_ss_copy.mp4", 27),
        ("06-side-data-crash/mj.avi", 10),
        ("06-side-data-crash/mj.mov", 10),
        ("06-side-data-crash/exif.apng", 5),
        ("06-side-data-crash/exif.avif", 5),
        ("08-ts-joined/joined_no_sound.ts", 50),
        ("08-ts-joined/joined_with_sound.ts", 50),
        ("21-gif-advice/a.gif", 5),
        ("21-gif-advice/a.webp", 5),
        ("23-open-gop-start/ogc.mkv", 50),
        ("23-open-gop-start/ogc.mp4", 50),
    ],
)
def test_every_frame_that_players_show_is_there(tmp_path: Path, name: str, frames: int) -> None:
    report = run(CASES / name, tmp_path / "out.mkv")
    times = [round(t, 3) for t, _ in shown(tmp_path / "out.mkv")]
    assert (report.frames, len(times)) == (frames, frames)
    if name.startswith(("01-edit-list-trim/elst", "08", "23")):
        np.testing.assert_allclose(np.diff(times), 0.04, atol=0.0015)
    if name.startswith("06"):
        assert any("EXIF" in entry for entry in report.left_out)
    for stream in packets(tmp_path / "out.mkv", "audio"):
        assert abs(stream[0][0] - times[0]) < 0.1  # no sound from before the trim
        assert abs(stream[-1][0] - times[-1]) < 0.2


@pytest.mark.parametrize("name", ["sph1.mp4", "sph2.mp4", "stereo_mode.mkv"])
def test_projection_and_stereo_arrive(tmp_path: Path, name: str) -> None:
    source, target = CASES / "10-spherical-stereo" / name, tmp_path / f"out{Path(name).suffix}"
    report = run(source, target)
    with av.open(str(source)) as before, av.open(str(target)) as after:
        old, new = (read_side_data(c.streams.video[0]) for c in (before, after))
    assert (old.projection, old.stereo_mode) != (b"", 0)
    assert (new.projection, new.stereo_mode, report.left_out) == (old.projection, old.stereo_mode, [])


@pytest.mark.parametrize(
    ("name", "key"), [("phone.mov", "com.apple.quicktime"), ("android.mp4", "com.android")]
)
@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_keys_of_phones_arrive(tmp_path: Path, name: str, key: str, suffix: str) -> None:
    source = CASES / "12-mov-metadata" / name
    report = run(source, tmp_path / f"out{suffix}")
    with av.open(str(source)) as before, av.open(str(tmp_path / f"out{suffix}")) as after:
        wanted = {k: v for k, v in before.metadata.items() if k.startswith(key)}
        assert wanted
        assert wanted.items() <= dict(after.metadata).items()
    assert report.left_out == []


@pytest.mark.parametrize(
    ("name", "siting"),
    [("d_center.mp4", "center"), ("d_topleft.mp4", "topleft"), ("jpeg_siting.y4m", "center")],
)
def test_the_place_of_chroma_is_read_and_written(tmp_path: Path, name: str, siting: str) -> None:
    run(CASES / "16-chroma-siting" / name, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as clip:
        stream = clip.streams.video[0]
        assert read_side_data(stream).siting == siting
        frame = next(clip.decode(stream))
    places: list[tuple[float, float]] = []
    for plane, size in zip(frame_planes(frame, layout_of("yuv420p"))[::2], (1, 2), strict=True):
        weights = np.abs(plane.astype(float) - np.median(plane))  # a disc on an even ground
        weights[weights < weights.max() / 4] = 0
        y, x = (np.average(index, weights=weights) for index in np.indices(plane.shape))
        down = 0 if siting == "topleft" else (size - 1) / 2
        right = (size - 1) / 2 if siting == "center" else 0
        places.append((size * y + down, size * x + right))
    if name != "jpeg_siting.y4m":  # which shows no disc
        assert np.abs(np.subtract(*places)).max() < 0.25, places


@pytest.mark.parametrize(
    "name", ["display_p3_cicp.png", "display_p3_nclx.avif", "hdr_pq_bt2020_cicp.png", "linear_gama.png"]
)
def test_colour_in_numbers_arrives(tmp_path: Path, name: str) -> None:
    source = CASES / "04-colour-tags" / name
    result, left_out = twofold(source, tmp_path / f"out{source.suffix}")
    before = read_image(source)
    assert before.kind.color is not None
    assert (result.kind.color, left_out) == (before.kind.color, ())


@pytest.mark.parametrize("name", ["caption.jpg", "caption.tif"])
def test_iptc_arrives(tmp_path: Path, name: str) -> None:
    result, _ = twofold(CASES / "07-iptc" / name, tmp_path / f"out{Path(name).suffix}")
    iptc = iptc_of(parse_resources(result.resources or b"")) or b""
    for number, word in ((25, b"harbour"), (120, b"boat"), (116, b"(c)")):
        assert b"\x1c\x02" + bytes([number]) in iptc
        assert word in iptc


def test_extended_xmp_arrives(tmp_path: Path) -> None:
    result, _ = twofold(CASES / "07-iptc/extended_xmp.jpg", tmp_path / "out.jpg")
    assert b"photoshop:History" in (result.xmp or b"")
    assert b"HasExtendedXMP" not in (result.xmp or b"")


def test_a_gain_map_is_named_and_its_xmp_goes(tmp_path: Path) -> None:
    result, left_out = twofold(CASES / "24-ultra-hdr/gain_map.jpg", tmp_path / "out.jpg")
    assert any("gain map" in entry for entry in left_out)
    assert b"hdrgm" not in (result.xmp or b"")
    assert b"Container" not in (result.xmp or b"")


def test_structural_exif_stays_out_of_a_tiff(tmp_path: Path) -> None:
    for source in sorted((CASES / "attack/exif_to_tiff").iterdir()):
        result, _ = twofold(source, tmp_path / f"{source.stem}.tif")
        np.testing.assert_array_equal(result.rgb[::2, ::2], read_image(source).rgb)


@pytest.mark.parametrize(
    "name", ["colour/grey4_trns5.png", "colour/big_be.tif", "icc_text.png", "exif_garbage.png"]
)
def test_odd_files_are_read(tmp_path: Path, name: str) -> None:
    source = CASES / "attack" / name
    result, _ = twofold(source, tmp_path / f"out{source.suffix}")
    assert (result.alpha is not None) == ("trns" in name)


# ---------------------------------------------------------------------------------------------------------
# Cases that bring a script of their own


@pytest.fixture(scope="module")
def yonos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A command with a tiny model of factor 2."""
    folder = tmp_path_factory.mktemp("cases")
    engine = make_engine_dir(folder / "engine", scale=2)
    script = folder / "yonos"
    code = f"import sys; sys.argv[2:2] = ['-m', {str(engine)!r}, '--threads', '1']\n"
    code += "from yonos_trt.console import yonos; yonos()\n"
    (folder / "start.py").write_text(code, encoding="utf-8")
    script.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} {folder}/start.py "$@"\n')
    script.chmod(0o755)
    return script


def told(case: str, yonos: Path, tmp_path: Path) -> str:
    """Run a case's script; return what it prints."""
    other = CASES / case / "clip.mkv" if case.startswith("17") else CASES / "picture.png"
    command = [shutil.which("bash") or "bash", str(CASES / case / "run.sh"), str(yonos), str(other)]
    done = subprocess.run(
        command, capture_output=True, timeout=240, check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    return (done.stdout + done.stderr).decode(errors="replace")


def test_a_run_said_again_takes_no_results(yonos: Path, tmp_path: Path) -> None:
    assert told("13-run-twice", yonos, tmp_path).split() == ["./big/p_x2.png", "./p.png"]


def test_names_that_are_not_utf8_do_not_end_a_run(yonos: Path, tmp_path: Path) -> None:
    lines = told("14-name-not-utf8", yonos, tmp_path).splitlines()
    assert lines[-3:] == ["a_x2.png", "m_caf\\351_x2.png", "z_x2.png"]


def test_a_pipe_as_a_path_is_refused(yonos: Path, tmp_path: Path) -> None:
    text = told("17-pipe-as-path", yonos, tmp_path)
    assert "is no regular file" in text
    assert "exit 1\n" in text
    assert "resume with the file itself: exit 0" in text  # nothing had been begun


def test_what_of_a_folder_is_not_done_is_named(yonos: Path, tmp_path: Path) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    tmp_path.chmod(0o755)
    text = told("18-silently-left-out", yonos, tmp_path)
    for name in ("locked", "album", "phone.HEIC"):
        assert re.search(rf"(skipped|error:|cannot).*{name}|{name}.*(cannot|skipped|error)", text), (
            name,
            text,
        )
    assert "exit 1\n" in text
    assert len(list(tmp_path.glob("*/out/ok_x2.png"))) == 1


def test_a_name_of_247_bytes_is_written(yonos: Path, tmp_path: Path) -> None:
    assert "exit 0" in told("20-long-name", yonos, tmp_path)
    (target,) = tmp_path.glob("*/*_x2.png")
    assert len(os.fsencode(target.name)) == 250
