"""Whether a checkpoint belongs to the run that the flags describe."""

from collections.abc import Collection, Sequence
from itertools import zip_longest

from nr.network.convolutions import ConvBN
from nr.network.layers import Network
from utils.files import Plain
from utils.training.options import NO_REJUVENATION, PLAIN, Flags

# Flags that say which run a checkpoint belongs to; to train on, they have to be the same.
IDENTITY = ("dataset", "subset", "image_size")

# Flags that cut an epoch into steps, and what a run without them has: fixed inside an epoch.
STEP = {"train_batch": None, "iter_size": 1}

# What has been done to a network is its checkpoint's. Of any network: from which weights it began,
# and what stays of it.
FROM_START = ("pretrained", "nr_keep")
# Of a rejuvenated network: the flags that say how.
REJUVENATED = (
    *("nr_target", "nr_cross", "nr_from_scratch", "nr_round_to", "nr_carry"),
    *("nr_flops", "nr_budget", "nr_latency_batch"),
)
OLDER = PLAIN | {"nr_flops": False, "nr_latency_batch": 1}  # what runs without these flags had


def unfit(
    payload: Plain, spec: Plain, flags: Flags, classes: Sequence[str], data: Plain | None
) -> str | None:
    """Why a checkpoint cannot be used with these flags and data; None if it can."""
    return (
        other_class(payload, classes)
        or mismatch(payload, spec, vars(flags))
        or other_data(payload, data)
        or contradiction(payload, vars(flags), flags.given)
    )


def mismatch(payload: Plain, spec: Plain, flags: Plain) -> str | None:
    """Why the run of a checkpoint is not the one of ``spec`` and ``flags``, or None if it is.

    Another network is always wrong; other data or another seed only for training on.
    """
    if _without_size(payload["network"]) != _without_size(spec):
        return f"holds {payload['network']}, but the flags say {spec}"
    if flags["evaluate"]:
        return None
    was = payload["args"]
    identity = [(name, was.get(name), flags.get(name)) for name in IDENTITY]
    if flags["manualSeed"] is not None:
        identity.append(("manualSeed", payload["run"]["seed"], flags["manualSeed"]))
    for name, then, now in identity:
        if then != now:
            return f"was trained with {name} {then}, but the flags say {now}"
    target = flags["nr_target"]
    if payload["run"]["phase"] == "search" and target >= NO_REJUVENATION:
        return f"stands in its search, which --nr-target {target:g} never ends"
    number, rounds = payload["run"].get("round", 1), flags["nr_rounds"]
    if number > rounds:
        return f"stands in round {number}, but --nr-rounds is {rounds}"
    for name, default in STEP.items() if payload["partial"] is not None else ():
        if was.get(name, default) != flags.get(name, default):
            flag = name.replace("_", "-")
            return f"stands inside an epoch, so --{flag} cannot change here"
    return None


def _without_size(spec: Plain) -> Plain:
    """A network's description without the size of its images, which only training on compares."""
    return spec | {"options": {k: v for k, v in spec["options"].items() if k != "image_size"}}


def done(payload: Plain) -> Plain:
    """The flags that say what has been done to the network of a checkpoint, with their values."""
    was, run = payload["args"], payload["run"]
    found, later = {name: was.get(name) for name in FROM_START}, run.get("round", 1) > 1
    trains = run["phase"] == "train"
    if trains and not later and run["search_epochs"] == 0:
        return found | PLAIN | {"nr_target": max(was["nr_target"], NO_REJUVENATION)}
    if trains or later:
        found |= {name: was.get(name, OLDER.get(name)) for name in REJUVENATED}
        found["nr_budget"] = found["nr_budget"] or ("flops" if found["nr_flops"] else "params")
        if run["rescaled"] or later:
            found["nr_bn_target"] = was.get("nr_bn_target")
        elif run["epoch"] > run["search_epochs"] or payload["partial"] is not None:
            found["nr_bn_target"] = None
    return found


def contradiction(payload: Plain, flags: Plain, given: Collection[str]) -> str | None:
    """Which of the ``given`` flags contradicts what is ``done``, or None.

    --pretrained, and --nr-bn-target once the train phase has begun, have no effect instead.
    """
    if flags["evaluate"]:
        return None
    known, run = done(payload), payload["run"]
    plain = known.get("nr_target", 0) >= NO_REJUVENATION
    rescalable = not plain and not run["rescaled"] and run.get("round", 1) == 1
    for name, was in known.items():
        same = flags[name] == was or (plain and name == "nr_target" and flags[name] >= was)
        effect = name != "pretrained" and not (name == "nr_bn_target" and rescalable)
        if name in given and effect and not same:
            cause = "nr_target" if plain else name
            made = "without" if known[cause] is None or known[cause] is False else "with"
            now = _flag(name, flags[name])
            return f"was made {made} {_flag(cause, known[cause])}: {now} contradicts that"
    return None


def _flag(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is None or isinstance(value, bool):
        return flag
    if isinstance(value, list):
        return " ".join([flag, *value])
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def other_class(payload: Plain, classes: Sequence[str]) -> str | None:
    """The first class that the checkpoint and the data name differently, or None.

    An older checkpoint without class names fits any data.
    """
    pairs = zip_longest(payload.get("classes", classes), classes)
    for number, (was, now) in enumerate(pairs, start=1):
        if was != now:
            had, has = ("none" if name is None else repr(name) for name in (was, now))
            return f"class {number} is {had}, that of the data {has}"
    return None


def other_data(payload: Plain, data: Plain | None) -> str | None:
    """How the data set differs from that of the checkpoint, or None where it does not.

    Its name may change with its folder. Older checkpoints and evaluations have no digest.
    """
    was = payload.get("data")
    if not was or not data or data["digest"] is None:
        return None
    if all(was[key] == data[key] for key in ("classes", "images", "digest")):
        return None
    then, now = (
        f"{known['name']} ({known['images'][0]:,} training and {known['images'][1]:,} test images,"
        f" digest {known['digest'][:8]})"
        for known in (was, data)
    )
    return f"was trained on {then}, but the data are {now}"


def unmergeable(network: Network, number: int, flags: Plain) -> str | None:
    """Why ``network``, of round ``number``, cannot be merged for the next one, or None."""
    rounds = flags["nr_rounds"]
    gated = any(unit.form == "attention" for unit in network.modules() if isinstance(unit, ConvBN))
    if flags["evaluate"] or number >= rounds or not gated:
        return None
    return (
        f"--nr-rounds {rounds}: its attention cross-connections cannot be merged into one stream"
        " for another round"
    )
