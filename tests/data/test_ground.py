"""Rectangles of ground and the pixels in them, against pixel-by-pixel geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from forestgaps_jax.data.ground import Rectangle, pixels_inside, pixels_touched, shared_grounds
from forestgaps_jax.types import Grid, Site

quarters = st.integers(-60, 60).map(lambda n: n / 4)
sides = st.integers(1, 60).map(lambda n: n / 4)


def make_site(shape, resolution=1.0, left=0.0, top=0.0, crs=None):
    heights = np.zeros(shape, np.float32)
    return Site("made", heights, heights, Grid(resolution, left, top, crs))


@st.composite
def rectangles(draw):
    left, bottom = draw(quarters), draw(quarters)
    return Rectangle(left, bottom, left + draw(sides), bottom + draw(sides))


@st.composite
def sites(draw):
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    place = {"left": draw(quarters), "top": draw(quarters)}
    return make_site(shape, draw(st.sampled_from([0.5, 1.0, 2.0])), **place, crs=draw(st.sampled_from("ab")))


def span(flags):
    """Pixels ``[first, last)`` of a run of True."""
    found = np.flatnonzero(flags)
    return np.arange(found[0], found[-1] + 1).tolist() if len(found) else []


@settings(max_examples=150, deadline=None)
@given(rectangles(), sites(), st.sampled_from([0.0, 4e6]))
def test_pixels_inside_and_touched_match_the_geometry_of_each_pixel(rectangle, site, far):
    """``far`` moves all by millions of metres, as a real CRS does."""
    moved = Rectangle(*(edge + far for edge in rectangle))
    grid = site.grid
    there = make_site(site.shape, grid.resolution, grid.left + far, grid.top + far)
    north = grid.top - grid.resolution * np.arange(site.shape[0])
    west = grid.left + grid.resolution * np.arange(site.shape[1])
    south, east = north - grid.resolution, west + grid.resolution
    within = (
        (north <= rectangle.top) & (south >= rectangle.bottom),
        ((west >= rectangle.left) & (east <= rectangle.right)),
    )
    meets = (
        (south < rectangle.top) & (north > rectangle.bottom),
        ((west < rectangle.right) & (east > rectangle.left)),
    )
    for function, (rows, columns) in ((pixels_inside, within), (pixels_touched, meets)):
        top, left, bottom, right = function(moved, there)
        # As slices, which is how they are used: a negative end would count from the far side.
        assert np.arange(len(rows))[top:bottom].tolist() == span(rows)
        assert np.arange(len(columns))[left:right].tolist() == span(columns)


@settings(max_examples=40, deadline=None)
@given(rectangles(), st.integers(8, 60).map(lambda n: n / 4))
def test_division_is_equal_parts_that_cover_all(rectangle, side):
    parts = rectangle.divide(side)
    width, height = rectangle.right - rectangle.left, rectangle.top - rectangle.bottom
    assert len(parts) == max(1, int(width // side)) * max(1, int(height // side))
    assert sum((p.right - p.left) * (p.top - p.bottom) for p in parts) == pytest.approx(width * height)
    assert Rectangle.around(parts) == pytest.approx(rectangle)
    shrunk = [part.grow(-1e-9) for part in parts]
    assert not any(a.overlaps(b) for i, a in enumerate(shrunk) for b in shrunk[:i])
    assert min(p.right - p.left for p in parts) >= min(side, width) - 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(sites(), min_size=1, max_size=6))
def test_sites_are_grouped_as_the_components_of_overlap(sites):
    def meet(a, b):
        across = min(r.right for r in (a, b)) - max(r.left for r in (a, b))
        along = min(r.top for r in (a, b)) - max(r.bottom for r in (a, b))
        return across > 0 and along > 0

    ground = [Rectangle.of(site) for site in sites]
    same = [
        [a.grid.crs == b.grid.crs and meet(ground[i], ground[j]) for j, b in enumerate(sites)]
        for i, a in enumerate(sites)
    ]
    count, label = connected_components(np.array(same))
    expected = {tuple(np.flatnonzero(label == group).tolist()) for group in range(count)}
    assert set(shared_grounds(sites)) == expected


def test_rectangle_of_a_site_runs_south_from_its_top():
    assert Rectangle.of(make_site((10, 20), 0.5, 100.0, 50.0)) == (100.0, 45.0, 110.0, 50.0)


def test_grow_moves_every_edge_out():
    assert Rectangle(0.0, 1.0, 2.0, 3.0).grow(0.5) == (-0.5, 0.5, 2.5, 3.5)
