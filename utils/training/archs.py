"""The networks that -a takes, and what the flags make of them."""

import argparse
import re

import torch

import models
import nr
from models import converted, pretrained
from nr.network.convolutions import ConvBN
from utils.files import Plain

CONVERTED = [f"{library}:<name>" for library in converted.LIBRARIES]


def arch(family: str, text: str) -> str:
    """The name that files have of the network ``text``; ArgumentTypeError for an unknown one."""
    name, own = models.file_name(text), models.archs(family)
    if text in own or (name != text and ":" in text):
        return name
    rest = re.split("[:_]", text, maxsplit=1)[1:]  # behind what may be a library's name
    known = [*own, *(f"{library}:{name}" for library in converted.LIBRARIES for name in rest)]
    raise argparse.ArgumentTypeError(
        f"{text!r} is unknown: {usage(family)}; the nearest is {converted.nearest(text, known)}"
    )


def usage(family: str) -> str:
    return f"network: {', '.join([*sorted(models.archs(family)), *CONVERTED])}"


def pretrained_ones(family: str) -> list[str]:
    """The networks that there are weights of, as -a takes them."""
    return [*(name for name in pretrained.ARCHS if name in models.archs(family)), *CONVERTED]


def check_network(parser: argparse.ArgumentParser, family: str, args: argparse.Namespace) -> Plain:
    """The builder's keywords (without num_classes), tried out on no memory before any work."""
    from_library = converted.split(args.arch) is not None
    has_weights = args.arch in pretrained.ARCHS or from_library
    if args.pretrained and (not has_weights or args.width_mult != 1):
        known = " ".join(pretrained_ones(family))
        parser.error(f"--pretrained: there are weights of {known}, of --width-mult 1 only")
    keywords = {
        "depth": args.depth,
        "dropout": args.dropout,
        "growth_rate": getattr(args, "growthRate", None),
        "compression_rate": getattr(args, "compressionRate", None),
        "width_mult": args.width_mult,
    }
    unneeded: dict[str, float] = {}
    if from_library:
        keywords["image_size"] = args.image_size
        unneeded = {"width_mult": 1, "image_size": converted.IMAGE_SIZES[family]}
    keywords = {
        name: value
        for name, value in keywords.items()
        if value is not None and unneeded.get(name) != value
    }
    try:
        with torch.device("meta"):
            network = models.build(family, args.arch, **keywords)
    except ValueError as error:
        flag = str(error).replace("_rate", "Rate", 1)
        parser.error(f"--{flag}")
    except RuntimeError as error:
        parser.error(f"--width-mult, --growthRate: no such network: {str(error).splitlines()[0]}")
    try:
        nr.hold(network, keep=args.nr_keep or ())
    except ValueError as error:
        parser.error(f"--nr-{error}")
    widest = max(max(m.out_channels) for m in network.modules() if isinstance(m, ConvBN))
    if args.nr_round_to > widest:
        parser.error(f"--nr-round-to {args.nr_round_to}: the widest layer has {widest} channels")
    return keywords
