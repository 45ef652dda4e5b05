"""The eight orientations of a stored frame, by EXIF's numbers: for pictures and videos alike."""

import numpy as np
from PIL import Image

# By the signs of a display matrix (a, b, c, d), which maps (x, y) to (a x + c y, b x + d y), y pointing down.
_OF_MATRIX = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def of_matrix(matrix: bytes) -> int:
    """The orientation that a display matrix means: 9 int32, of which the others translate and scale.

    Angles between the right ones are rounded; a matrix of zeros is the upright one.
    """
    a, b, _, c, d, *_ = np.frombuffer(matrix, "<i4").astype(float)
    largest = max(map(abs, (a, b, c, d))) or 1.0
    signs = tuple(round(value / largest) for value in (a, b, c, d))
    return _OF_MATRIX.get(signs, 1)


def of_exif(value) -> int:
    """The orientation that an EXIF tag means; 1, upright, for a value that none has."""
    return value if value in _TRANSPOSE else 1


def swaps_sides(orientation: int) -> bool:
    """Whether the shown width is the stored height."""
    return orientation >= 5


def make_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as it is to be shown."""
    return image if orientation == 1 else image.transpose(_TRANSPOSE[orientation])
