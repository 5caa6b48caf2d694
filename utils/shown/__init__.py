"""What a person sees: the progress bar, log.txt, pictures."""

import os

# matplotlib refuses to load where the backend that a notebook has put in the environment is
# missing. No picture here needs one.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
