"""How many patches a series is cut into."""


def patch_count(length: int, size: int, stride: int) -> int:
    """Number of patches that `patches` makes of a series of `length`."""
    return (length - size) // stride + 2
