"""Windows of pixels, and the sizes that come of them."""

from nr.network.plain import Size

Window = int | tuple[int, int]  # of a square, or (height, width)


def pair(window: Window) -> tuple[int, int]:
    """(height, width) of a window."""
    return (window, window) if isinstance(window, int) else window


def window(what: str, value: object, least: int) -> Window:
    """A window as an int if it is square. Raises ValueError for what is no window."""
    found = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(found) != 2 or any(type(side) is not int or side < least for side in found):
        raise ValueError(
            f"ConvBN: {what} {value!r}: an int >= {least} for a square, or (height, width)"
        )
    return found[0] if found[0] == found[1] else found


def windows_in(
    size: Size, kernel: Window, stride: Window, padding: Window, dilation: Window
) -> Size:
    """How many windows of a convolution fit in ``size`` (H, W), along each side."""
    h, w = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, *map(pair, (kernel, stride, padding, dilation)), strict=True)
    )
    return h, w
