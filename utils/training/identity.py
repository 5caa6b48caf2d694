"""Whether a checkpoint belongs to the run that the flags describe."""

from utils.training.options import NO_REJUVENATION

# Flags that say which run a checkpoint belongs to; to train on, they have to be the same.
IDENTITY = ("dataset", "subset", "image_size")


def mismatch(payload: dict, spec: dict, flags: dict) -> str | None:
    """Why the run of a checkpoint is not the one of ``spec`` and ``flags``, or None if it is.

    Another network is always wrong; other data or another seed only for training on.
    """
    if payload["network"] != spec:
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
    if payload["partial"] is not None and was.get("train_batch") != flags["train_batch"]:
        return "stands inside an epoch, so --train-batch cannot change here"
    return None
