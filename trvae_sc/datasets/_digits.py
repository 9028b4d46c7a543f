"""Images of digits in several styles: a transfer that can be judged by eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import ndimage

from trvae_sc.arguments import check_seed
from trvae_sc.errors import InputError

_WHITE = 16.0  # largest value of a pixel
#: What a style that is a map does if it is not told otherwise.
PARAMETERS = {"angle": 0.0, "shear": 0.0, "scale": 1.0, "thickness": 0.0}


def digits(
    styles: Sequence[str] | pd.DataFrame = ("normal", "outlined"),
    *,
    split: bool = False,
    seed: int = 0,
) -> AnnData:
    """Return handwritten digits, 8 x 8 pixels, each drawn in several styles.

    The style is the condition and the digit the label: a digit can be hidden in one style, predicted
    and looked at. Styles are computed from the image:

    ========  =====================================================================  =====
    style     image                                                                  share
    ========  =====================================================================  =====
    normal    as scanned, white (16) on black (0)
    dark      half as bright                                                         0.20
    slanted   upper three rows one pixel to the right, lower three to the left       0.51
    shifted   one pixel to the right                                                 0.54
    thick     the largest of a pixel and those right of, below and diagonal to it    0.26
    inverted  black on white                                                         0.28
    rotated   by 90 degrees, counterclockwise                                        0.36
    outlined  the edge: largest of a pixel and its four neighbours, less the pixel   0.69
    mirrored  left and right exchanged                                               1.10
    ========  =====================================================================  =====

    The share is what of a digit's mean squared change from normal is left once the mean change of
    the nine other digits is taken off (measured): the larger, the less a mean shift can do. ``dark``,
    ``slanted`` and ``thick`` can be carried over: each pixel depends on few, in the same way in every
    digit. ``rotated``, ``outlined`` and ``mirrored`` are hard for all methods.

    Parameters
    ----------
    styles
        Styles, in the order of the categories. Or a table of maps, one row a style, with columns of ``angle``
        (degrees, counterclockwise), ``shear`` (columns to the right per row upwards), ``scale`` and
        ``thickness`` (-1 thinner to 1 thicker): images are turned, sheared and resized about their middle
        with linear interpolation, and drawn towards the least or largest of each pixel's neighbours.
    split
        Draw each image in one style only, as evenly as can be within each digit; else in every style.
    seed
        Seed of the split.

    Returns
    -------
    AnnData with pixel values (0 to 16) in ``X`` (float32, dense; rows of the image one after the
    other), ``obs["style"]``, ``obs["digit"]`` ("0" to "9"), ``obs["image"]`` (number of the image in
    scikit-learn), ``var["row"]``, ``var["column"]`` and ``uns["image_shape"]``. 1,797 cells per style,
    or in all if `split`; 64 features. Of a table also ``uns["condition_features"]``, with all four columns.

    Raises
    ------
    InputError
        An unknown style, one named twice, or none; maps out of range.

    References
    ----------
    Alpaydin and Kaynak 1998, doi:10.24432/C50P49; its test part comes with scikit-learn.

    Examples
    --------
    >>> adata = digits(["normal", "thick", "mirrored"])
    >>> image = adata.X[0].reshape(adata.uns["image_shape"])
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    n_rows, n_columns = source.images.shape[1:]
    uns: dict[str, Any] = {"image_shape": np.array([n_rows, n_columns])}
    drawn_by = _DRAWINGS
    if isinstance(styles, pd.DataFrame):
        table = uns["condition_features"] = _parameters(styles)
        drawn_by = {str(name): partial(_mapped, **row) for name, row in table.iterrows()}
        styles = list(drawn_by)
    styles = list(styles)
    unknown = [style for style in styles if style not in drawn_by]
    if unknown or not styles or len(set(styles)) < len(styles):
        raise InputError(f"styles are {styles}; name one or more of {list(drawn_by)}, each once.")
    style = np.repeat(np.arange(len(styles)), len(source.target))
    image = np.tile(np.arange(len(source.target)), len(styles))
    if split:
        check_seed(seed)
        chosen = _split(source.target, len(styles), np.random.default_rng(seed))
        kept = style == chosen[image]
        style, image = style[kept], image[kept]
    drawn = np.stack([drawn_by[name](source.images) for name in styles])[style, image]
    obs = pd.DataFrame(
        {
            "style": pd.Categorical.from_codes(style, styles),
            "digit": pd.Categorical(source.target[image].astype(str)),
            "image": image,
        },
        index=[f"image_{i}_{styles[int(s)]}" for i, s in zip(image, style, strict=True)],
    )
    pixels = np.ndindex(n_rows, n_columns)
    var = pd.DataFrame(pixels, columns=["row", "column"])
    var.index = [f"pixel_{row}_{column}" for row, column in var.to_numpy()]
    x = drawn.reshape(len(obs), -1).astype(np.float32)
    return AnnData(x, obs=obs, var=var, uns=uns)


def _parameters(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of maps with all columns; raise on others."""
    unknown = [c for c in table.columns if c not in PARAMETERS]
    if unknown or not len(table) or not table.shape[1]:
        raise InputError(
            f"A table of styles has columns of {list(PARAMETERS)}, one row a style; this one has "
            f"{list(table.columns)} and {len(table)} rows."
        )
    names = table.index.astype(str).rename("style")
    if not names.is_unique:
        raise InputError("A table of styles has each style once; name them differently.")
    columns = {name: table.get(name, usual) for name, usual in PARAMETERS.items()}
    found = pd.DataFrame(columns, table.index, dtype=float).set_axis(names)
    if not np.isfinite(found.to_numpy()).all() or (found["scale"] <= 0).any():
        raise InputError("Styles are finite numbers, and their scale is above 0.")
    if (found["thickness"].abs() > 1).any():
        raise InputError("The thickness of a style is from -1 to 1.")
    return found


def _mapped(
    images: np.ndarray, *, angle: float, shear: float, scale: float, thickness: float
) -> np.ndarray:
    """Return images turned, sheared and resized about their middle, then thicker or thinner."""
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    # of places in the result, (row, column), to those in the image
    inverse = np.linalg.inv(np.array([[1.0, 0.0], [-shear, 1.0]]) @ rotation * scale)
    inverse = inverse.round(12)  # else what is at the edge may come from outside of the image
    middle = (np.array(images.shape[1:]) - 1) / 2
    offset = middle - inverse @ middle
    drawn = np.stack([ndimage.affine_transform(i, inverse, offset, order=1) for i in images])
    neighbours = ndimage.grey_dilation if thickness >= 0 else ndimage.grey_erosion
    return drawn + abs(thickness) * (neighbours(drawn, size=(1, 2, 2)) - drawn)


def _right(images: np.ndarray, n: int) -> np.ndarray:
    return ndimage.shift(images, (0, 0, n), order=0)


_CROSS = ndimage.generate_binary_structure(2, 1)[None]
#: What draws images (n_images x rows x columns) in each style.
_DRAWINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda images: images,
    "thick": lambda images: ndimage.grey_dilation(images, size=(1, 2, 2)),
    "inverted": lambda images: _WHITE - images,
    "rotated": lambda images: np.rot90(images, axes=(1, 2)),
    "outlined": lambda images: ndimage.grey_dilation(images, footprint=_CROSS) - images,
    "mirrored": lambda images: images[:, :, ::-1],
    "dark": lambda images: images / 2,
    "slanted": lambda images: np.concatenate(
        [_right(images[:, :3], 1), images[:, 3:5], _right(images[:, 5:], -1)], axis=1
    ),
    "shifted": lambda images: _right(images, 1),
}


def _split(digit: np.ndarray, n_styles: int, rng: np.random.Generator) -> np.ndarray:
    """Return a style for each image, as evenly as can be within each digit."""
    chosen = np.empty(len(digit), dtype=int)
    for value in np.unique(digit):
        images = np.flatnonzero(digit == value)
        chosen[images] = rng.permutation(np.arange(len(images)) % n_styles)
    return chosen
