"""Virtual forests: terrain, stands, trees and gaps drawn from one seed, where no raster is at hand."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Float32
from numpy.random import Generator

from forestgaps_jax.types import Grid, Site

_ALLOWED = {"resolution": (0.1, 5), "slope": (0, 60), "closure": (0, 1), "height": (8, 90), "noise": (0, 2)}
_WINDOW_PIXELS = 1 << 21  # drawn at once: bounds the memory of a large site
_TERRAIN_STEP = 4.0  # m; terrain is smooth below it, as a DTM from lidar ground returns is
_OVERHANG = 1.5  # m that neighbours' crowns reach into a gap
_GAP_AREAS = (20.0, 3000.0)  # m2
_GAP_EXPONENT = 1.8  # frequency ~ area^-exponent
_APART = 1e5  # m between the forests of two seeds: no two show the same ground
_NOWHERE = 1e8  # m north, further than any place on Earth: none shows the ground of a raster without a CRS

_Values = Float[np.ndarray, " n"]
_Raster = Float[np.ndarray, "height width"]


class _Plot(NamedTuple):
    """The ground to fill: everything but its pixels is in metres, ``(y, x)`` from the upper left corner."""

    shape: tuple[int, int]
    resolution: float

    @property
    def extent(self) -> tuple[float, float]:
        return self.shape[0] * self.resolution, self.shape[1] * self.resolution

    def sample(self, surface: "scipy.interpolate.RectBivariateSpline") -> _Raster:
        y, x = ((np.arange(n) + 0.5) * self.resolution for n in self.shape)
        return surface(y, x)


class _Trees(NamedTuple):
    y: _Values
    x: _Values
    height: _Values
    radius: _Values
    base: _Values  # where the crown begins, fraction of the height
    roundness: _Values  # 0 cone, 1 ellipsoid
    rank: _Values  # the lower, the longer a tree stands when the forest is thinned

    def select(self, keep: Bool[np.ndarray, " n"]) -> "_Trees":
        return _Trees(*(column[keep] for column in self))


def virtual_forest(
    seed: int,
    shape: tuple[int, int] = (512, 512),
    resolution: float = 1.0,
    *,
    slope: float = 25.0,
    closure: float = 0.85,
    height: float = 25.0,
    noise: float = 0.05,
    name: str | None = None,
) -> Site:
    """Draw a forest on a hillside: the same seed gives the same arrays, bit for bit.

    Sizes are physical: a seed over an extent is one forest at any resolution, but for the sensor noise. Each
    part has its own random stream: the same trees stand on steeper terrain under the same seed.

    Gap areas follow a power law, as in natural forests (Fisher et al. 2008; Asner et al. 2013). Crown radius
    is 0.8 m + 0.16 x tree height with scatter: a round figure, fitted to no species.

    Args:
        seed: which forest, 0 or more.
        shape: rows and columns, pixels, 16 or more each.
        resolution: ground size of a pixel's side, metres, 0.1 to 5.
        slope: mean terrain slope, degrees, 0 (flat) to 60.
        closure: fraction of the ground under tree crowns, 0 to 1; crowns pack no closer than about 0.98.
        height: height of the dominant trees, metres, 8 to 90; single trees are up to a half taller.
        noise: standard deviation of the sensor's vertical noise, metres, 0 to 2; the same in DSM and CHM.
        name: the site's name; None for ``"virtual-<seed>"``.

    Returns:
        Site with DSM = DTM + CHM, CHM >= 0, metres, no missing pixel.

    Raises:
        ValueError: an argument is outside what is allowed.

    Example:
        >>> site = virtual_forest(0, (64, 96), slope=30.0)
        >>> site.name, site.shape, bool(site.valid.all())
        ('virtual-0', (64, 96), True)
    """
    _check(seed, shape, resolution=resolution, slope=slope, closure=closure, height=height, noise=noise)
    plot = _Plot((int(shape[0]), int(shape[1])), float(resolution))
    terrain, stand, gap, surface, sensor = np.random.default_rng(seed).spawn(5)
    trees = _fell_gaps(gap, plot, _grow_trees(stand, plot.extent, height), closure)
    canopy = _draw_canopy(surface, plot, trees, closure)
    chm = np.maximum(canopy + sensor.normal(0.0, noise, plot.shape), 0.0).astype(np.float32)
    row, column = divmod(seed, 1000)
    grid = Grid(plot.resolution, left=_APART * column, top=_NOWHERE + _APART * row)
    return Site(name or f"virtual-{seed}", _terrain(terrain, plot, slope) + chm, chm, grid)


def is_virtual(site: Site) -> bool:
    """Whether a site is a virtual forest, by its place, which is nowhere on Earth.

    >>> is_virtual(virtual_forest(0, (16, 16)))
    True
    """
    return site.grid.crs is None and site.grid.top >= _NOWHERE


def put_on_terrain(site: Site, seed: int, slope: float) -> Site:
    """Put the canopy of a site on virtual terrain: the canopy height, and so every label, stays the truth.

    Args:
        site: of which the CHM is taken, and the name and grid.
        seed: which terrain, 0 or more.
        slope: mean terrain slope, degrees, 0 (flat) to 60.

    Raises:
        ValueError: an argument is outside what is allowed.

    >>> forest = virtual_forest(0, (64, 64), slope=0.0)
    >>> steep = put_on_terrain(forest, seed=1, slope=35.0)
    >>> bool(np.all(steep.chm == forest.chm)), bool(np.ptp(steep.dsm) > np.ptp(forest.dsm))
    (True, True)
    """
    plot = _Plot(site.shape, site.grid.resolution)
    _check(seed, plot.shape, resolution=plot.resolution, slope=slope)
    return replace(site, dsm=_terrain(np.random.default_rng(seed), plot, slope) + site.chm)


def _check(seed: int, shape: tuple[int, int], **ranged: float) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}; allowed: 0 or more")
    if min(shape) < 16:
        raise ValueError(f"shape is {shape}; allowed: (rows, columns), 16 pixels or more each")
    for field, value in ranged.items():
        low, high = _ALLOWED[field]
        if not low <= value <= high:
            raise ValueError(f"{field} is {value}; allowed: {low} to {high}")


def _bumps(
    rng: Generator, extent: tuple[float, float], scale: float
) -> "scipy.interpolate.RectBivariateSpline":
    """Smooth random field, mean 0, deviation about 1, bumps of ``scale`` metres, a little beyond the plot."""
    y, x = (np.arange(-3, int(np.ceil(side / scale)) + 4) * scale for side in extent)
    return scipy.interpolate.RectBivariateSpline(y, x, 1.2 * rng.standard_normal((y.size, x.size)))


def _terrain(rng: Generator, plot: _Plot, slope: float) -> Float32[np.ndarray, "height width"]:
    """Hillside, valleys and fractal relief, scaled to the mean slope asked for, a few hundred metres up."""
    y, x = (np.arange(-2, int(np.ceil(side / _TERRAIN_STEP)) + 3) * _TERRAIN_STEP for side in plot.extent)
    azimuth, elevation = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(200.0, 900.0)
    tilt = np.cos(azimuth) * y[:, None] + np.sin(azimuth) * x
    # The magnitude of a smooth field has sharp low lines where the field changes sign: valleys.
    valleys = np.hypot(_fractal(rng, (y.size, x.size), exponent=3.0), 0.1)
    relief = np.zeros(tilt.shape)
    for weight, part in ((0.6, tilt), (0.8, valleys), (0.7, _fractal(rng, tilt.shape, exponent=2.2))):
        relief += weight * part / np.sqrt(np.mean(_steepness(part) ** 2))
    steepness = _steepness(relief)[2:-2, 2:-2]
    if slope > 0.0:
        relief *= scipy.optimize.brentq(
            lambda k: np.degrees(np.arctan(k * steepness)).mean() - slope, 0.0, 1000.0
        )
    surface = scipy.interpolate.RectBivariateSpline(y, x, relief)
    return (elevation + (slope > 0.0) * plot.sample(surface)).astype(np.float32)


def _steepness(surface: _Raster) -> _Raster:
    return np.hypot(*np.gradient(surface, _TERRAIN_STEP))


def _fractal(rng: Generator, shape: tuple[int, int], exponent: float) -> _Raster:
    """Surface of amplitude ~ 1 / frequency^exponent below 700 m, cropped from a larger one that wraps."""
    rows, cols = (1 << (2 * max(n, 128) - 1).bit_length() for n in shape)
    frequency = np.hypot(np.fft.fftfreq(rows, _TERRAIN_STEP)[:, None], np.fft.rfftfreq(cols, _TERRAIN_STEP))
    spectrum = np.fft.rfft2(rng.standard_normal((rows, cols))) * (frequency**2 + 700.0**-2) ** (-exponent / 2)
    surface = np.fft.irfft2(spectrum, (rows, cols))
    return ((surface - surface.mean()) / surface.std())[: shape[0], : shape[1]]


def _grow_trees(rng: Generator, extent: tuple[float, float], height: float) -> _Trees:
    """Trees in stands of differing height, density and crown shape, as close as their crowns allow."""
    spacing = 0.5 * (0.8 + 0.16 * height)  # of the places where a tree may stand, before they compete
    lattice = [int(np.ceil(side / spacing)) + 8 for side in extent]
    y, x = (spacing * (np.indices(lattice) - 4 + rng.uniform(size=(2, *lattice)))).reshape(2, -1)
    y_in, x_in = (np.clip(v, -10.0, side + 10.0) for v, side in zip((y, x), extent, strict=True))
    age, density, kind = (
        _bumps(rng, extent, 80.0).ev(y_in, x_in) + 0.7 * _bumps(rng, extent, 25.0).ev(y_in, x_in)
        for _ in range(3)
    )
    vigour = 1.0 - 0.6 * rng.uniform(size=y.size) ** 2
    tall = height * (0.9 + 0.25 * np.tanh(0.9 * age)) * vigour * rng.lognormal(0.0, 0.08, y.size)
    radius = (0.8 + 0.16 * tall) * rng.lognormal(0.0, 0.2, y.size)
    base = rng.uniform(0.3, 0.65, y.size)
    roundness = np.clip(0.5 + 0.4 * kind + 0.15 * rng.standard_normal(y.size), 0.0, 1.0)
    rank = density + _bumps(rng, extent, 12.0).ev(y_in, x_in) + 0.5 * rng.standard_normal(y.size)
    score = vigour + rng.uniform(size=y.size)
    survives = _compete(*(v.reshape(lattice) for v in (y, x, 0.42 * radius, score))).ravel()
    return _Trees(y, x, tall, radius, base, roundness, rank).select(survives)


def _compete(y: _Raster, x: _Raster, reach: _Raster, score: _Raster) -> Bool[np.ndarray, "height width"]:
    """Random sequential packing of seedlings on a lattice: the strongest stand, those in their reach go."""
    shifts = [(i, j) for i in range(-3, 4) for j in range(-3, 4) if (i, j) != (0, 0)]

    def roll(v: _Raster, shift: tuple[int, int]) -> _Raster:
        return np.roll(v, shift, (0, 1))  # what wraps around comes from the far side, out of reach

    rivals = [np.hypot(y - roll(y, s), x - roll(x, s)) < reach + roll(reach, s) for s in shifts]
    while np.isfinite(score).any():
        best = np.full(score.shape, -np.inf)
        for shift, rival in zip(shifts, rivals, strict=True):
            np.maximum(best, roll(score, shift), out=best, where=rival)
        verdict = np.where(score > best, np.inf, np.where(best == np.inf, -np.inf, score))
        score = np.where(np.isfinite(score), verdict, score)
    return score == np.inf


def _windows(plot: _Plot, y: _Values, x: _Values, reach: _Values) -> Iterator[tuple[np.ndarray, ...]]:
    """Pixels within ``reach`` of each point, points of like reach at once: (point, flat pixel, dy, dx)."""
    (height, width), half = plot.shape, np.ceil(reach / plot.resolution).astype(int)
    for size in np.unique(half):
        offsets, members = np.arange(-size, size + 1), np.flatnonzero(half == size)
        for part in np.array_split(members, 1 + members.size * offsets.size**2 // _WINDOW_PIXELS):
            rows, cols = ((v[part, None] // plot.resolution).astype(int) + offsets for v in (y, x))
            dy, dx = (
                (rows + 0.5) * plot.resolution - y[part, None],
                (cols + 0.5) * plot.resolution - x[part, None],
            )
            near = dy[:, :, None] ** 2 + dx[:, None] ** 2 < reach[part, None, None] ** 2
            near &= ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None]
            n, i, j = np.nonzero(near)
            yield part[n], rows[n, i] * width + cols[n, j], dy[n, i], dx[n, j]


def _fell_gaps(rng: Generator, plot: _Plot, trees: _Trees, closure: float) -> _Trees:
    """Fell the trees in ragged ellipses with power-law areas: half of the ground that is to be open."""
    ground, tail = plot.extent[0] * plot.extent[1], 1.0 - _GAP_EXPONENT
    ragged = plot.sample(_bumps(rng, plot.extent, 6.0)).ravel()
    low, high = _GAP_AREAS[0] ** tail, max(min(_GAP_AREAS[1], 0.05 * ground), 2.0 * _GAP_AREAS[0]) ** tail
    unit = rng.uniform(size=(5, int(ground / _GAP_AREAS[0]) + 1))
    area = (low + unit[0] * (high - low)) ** (1.0 / tail)
    many = int(np.searchsorted(np.cumsum(area), 0.5 * (1.0 - closure) * ground))
    radius, stretch = np.sqrt(area[:many] / np.pi) + _OVERHANG, np.sqrt(1.0 + 1.5 * unit[1, :many])
    y, x = plot.extent[0] * unit[2, :many], plot.extent[1] * unit[3, :many]
    cos, sin = np.cos(np.pi * unit[4]), np.sin(np.pi * unit[4])
    felled = np.zeros(plot.shape, bool)
    for gap, pixel, dy, dx in _windows(plot, y, x, 1.5 * stretch * radius):
        along = (cos[gap] * dx + sin[gap] * dy) / stretch[gap]
        across = (cos[gap] * dy - sin[gap] * dx) * stretch[gap]
        felled.flat[pixel[np.hypot(along, across) * (1.0 + 0.25 * ragged[pixel]) < radius[gap]]] = True
    sites = zip((trees.y, trees.x), plot.shape, strict=True)
    row, col = (np.clip(v // plot.resolution, 0, n - 1).astype(int) for v, n in sites)
    return trees.select(~felled[row, col])


def _draw_canopy(rng: Generator, plot: _Plot, trees: _Trees, closure: float) -> _Raster:
    """Height of the highest crown, or of what grows under it, after thinning to ``closure``."""
    scales = (2.5, 1.0, 2.0, 15.0)
    lobes, twigs, herbs, shade = (plot.sample(_bumps(rng, plot.extent, scale)).ravel() for scale in scales)
    last_rank = np.full(lobes.size, np.inf)
    for tree, pixel, _ in _crowns(plot, trees, lobes):
        np.minimum.at(last_rank, pixel, trees.rank[tree])
    # A pixel is covered while its last tree stands, so a quantile of that tree's rank is the closure itself.
    trees = trees.select(trees.rank < np.quantile(last_rank, closure, method="inverted_cdf"))
    canopy = np.zeros(lobes.size)
    for tree, pixel, rho in _crowns(plot, trees, lobes):
        _, _, height, _, base, round_, _ = (column[tree] for column in trees)
        profile = round_ * np.sqrt(1.0 - rho**2) + (1.0 - round_) * (1.0 - rho)
        np.maximum.at(canopy, pixel, height * (base + (1.0 - base) * profile))
    pits = np.where(twigs > 2.2, 0.6, 1.0)
    canopy *= pits * (1.0 + 0.03 * lobes + 0.04 * twigs)
    return np.maximum(canopy, np.clip(0.6 + 1.3 * shade + 0.7 * herbs, 0.0, 4.0)).reshape(plot.shape)


def _crowns(plot: _Plot, trees: _Trees, lobes: _Values) -> Iterator[tuple[np.ndarray, ...]]:
    """Pixels under each crown: (tree, flat pixel, distance from the stem / the crown's ragged radius)."""
    for tree, pixel, dy, dx in _windows(plot, trees.y, trees.x, 1.3 * trees.radius):
        rho = np.hypot(dy, dx) / trees.radius[tree] * np.maximum(1.0 + 0.2 * lobes[pixel], 0.5)
        under = rho < 1.0
        yield tree[under], pixel[under], rho[under]
