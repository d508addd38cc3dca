"""The table of families: what `yonos-export --from NAME` can start from.

A family is data: where its step starts, at which time, what its encoder reads, whether it takes a prompt,
which files it is made of and under which terms. Its module has one function, ``open_family(family, config)``,
that turns the files into a `yonos_export.source.Source`. Whoever publishes the next one-step model adds a row
and a module; nothing else in the export or the run time knows the names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from yonos_trt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from yonos_export.config import ExportConfig
    from yonos_export.source import Source

__all__ = ["FAMILIES", "FILES", "Family", "open_family", "restrictive"]

# Fields of `ExportConfig` that only some families take, with what each is.
FILES: dict[str, str] = {
    "base": "the diffusers folder of the base model",
    "half_decoder": "AdcSR's halfDecoder.ckpt",
    "prompt": "the one prompt",
    "prompt_embeds": "a file with the prompt's embedding",
    "encoder": "the encoder's ONNX graph",
    "step": "the step's ONNX graph",
    "decoder": "the decoder's ONNX graph",
    "scale": "the enlargement",
    "pixel": "the strength of the LoRA weights for pixels",
    "semantic": "the strength of the LoRA weights for meaning",
}


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes
    ----------
    name
        As in ``--from``.
    source
        What SOURCE is.
    module
        Of ``yonos_export.families``: has ``open_family(family, config)``.
    start
        ``"noise"``: noise beside z_l; ``"latent"``: z_l itself. None: the source says.
    timestep
        As the network saw it. None: the source says, or there is none.
    encoder_input
        ``"upsampled"``: canvas tiles, ``"lr"``: LR tiles. None: the source says.
    scale
        Enlargement where nothing else is said. None: the source says.
    color_fix
        What its authors' code does at the end. None: the run time's default.
    needs, takes
        Fields of `FILES` that must, and that may, be given.
    licences
        Part -> terms and source, of what its files are made of, as published.
    """

    name: str
    source: str
    module: str
    start: Literal["noise", "latent"] | None = None
    timestep: float | None = None
    encoder_input: Literal["upsampled", "lr"] | None = None
    scale: int | None = None
    color_fix: Literal["wavelet", "adain", "none"] | None = None
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    licences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_SD21 = {
    "licence": "CreativeML Open RAIL++-M (restricts what it may be used for)",
    "source": "stabilityai/stable-diffusion-2-1-base, its model card",
}

_PROMPT = ("prompt", "prompt_embeds", "scale")
_ON_SD21 = partial(
    Family,
    start="latent",
    encoder_input="upsampled",
    scale=4,
    color_fix="adain",
    needs=("base",),
    takes=_PROMPT,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("lite", "a checkpoint folder of yonos-train (config.json)", "lite", start="noise"),
        Family("sd", "a diffusers folder of yonos-train (unet/ and vae/)", "sd", start="noise"),
        _ON_SD21(
            "osediff",
            "osediff.pkl",
            "osediff",
            timestep=999.0,
            licences={
                "base model": _SD21,
                "adapter": {
                    "licence": "Apache-2.0 (of the repository; the file itself states none)",
                    "source": "github.com/cswry/OSEDiff",
                },
            },
        ),
        _ON_SD21(
            "pisasr",
            "pisa_sr.pkl",
            "pisasr",
            timestep=1.0,
            takes=(*_PROMPT, "pixel", "semantic"),
            licences={
                "base model": _SD21,
                "adapter": {
                    "licence": "Apache-2.0 (by the repository's README; the text itself is not there)",
                    "source": "github.com/csslc/PiSA-SR",
                },
            },
        ),
        _ON_SD21(
            "omgsr-s",
            "the folder omgsr-s-512-adapter",
            "omgsr",
            timestep=273.0,
            licences={
                "base model": _SD21,
                "adapter": {
                    "licence": "not stated (neither the repository nor the files name a licence)",
                    "source": "github.com/wuer5/OMGSR",
                },
            },
        ),
        Family(
            "adcsr",
            "net_params_200.pkl",
            "adcsr",
            start="latent",
            encoder_input="lr",
            scale=4,
            color_fix="adain",
            needs=("half_decoder",),
            takes=("base",),
            licences={
                "base model": _SD21,
                "weights": {
                    "licence": "Apache-2.0 (of the repository; the files themselves state none)",
                    "source": "github.com/Guaishou74851/AdcSR",
                },
            },
        ),
        Family(
            "onnx",
            "model.json: name, scale, latent channels and factor, tiles, licence",
            "graphs",
            needs=("encoder", "step", "decoder"),
        ),
    )
}


def open_family(config: ExportConfig) -> Source:
    """Open the source of an export whose family was named.

    Raises
    ------
    ConfigError
        A file is missing, belongs to another family, or is not what the family expects.
    MissingExtraError
        torch or diffusers is needed and not installed.
    """
    assert config.family is not None
    family = FAMILIES[config.family]
    if not config.source.exists():
        raise ConfigError(f"{config.source} does not exist; --from {family.name} starts from {family.source}")
    for name in family.needs:
        if getattr(config, name) is None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"--from {family.name} needs {option}: {FILES[name]}")
    for name, what in FILES.items():
        if name not in (*family.needs, *family.takes) and getattr(config, name) is not None:
            others = [f.name for f in FAMILIES.values() if name in (*f.needs, *f.takes)]
            raise ConfigError(
                f"{name} ({what}) does not belong to --from {family.name}, only to {', '.join(others)}"
            )
        value = getattr(config, name)
        if hasattr(value, "exists") and not value.exists():
            raise ConfigError(f"{name} is {value}, which does not exist; expected {what}")
    try:
        module: Any = importlib.import_module(f"yonos_export.families.{family.module}")
    except ImportError as error:
        raise MissingExtraError(
            f"exporting {config.source}", package=str(error.name), extra="export", reason=str(error)
        ) from error
    source: Source = module.open_family(family, config)
    return source


def restrictive(terms: str) -> bool:
    """Whether licence terms allow less than free use, as far as their words say."""
    words = terms.lower().replace("-", " ").replace("_", " ")
    known = (
        "noncommercial", "non commercial", "research", "rail", "restrict", "academic", "by nc", "not stated",
        "unknown", "no licence", "no license", "proprietary", "evaluation", "personal use",
    )  # fmt: skip
    return any(word in words for word in known)
