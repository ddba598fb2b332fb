"""A synthetic landscape: which land cover stands at a point, how high, and in which variety.

The landscape of one area is vector-like: blocks bounded by roads, tracks and hedges, fields and
forest stands within them, houses in rows along the streets of settlements, a river, lakes. It can
be asked at any point, so the aerial patch (0.8 m or 0.2 m a pixel) and the satellite array (10 m)
show one and the same ground.

Coordinates are metres from the area's north-western corner: y to the south, x to the east.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

VARIETIES: Final = 4
"""Varieties of each class: crops, roofs, ages of a stand."""

# Values in the masks (see `nomenclature`).
BUILDING, PERVIOUS, IMPERVIOUS, BARE_SOIL, WATER, CONIFEROUS, DECIDUOUS = range(1, 8)
BRUSHWOOD, VINEYARD, HERBACEOUS, AGRICULTURAL, PLOWED = range(8, 13)
POOL, SNOW, CLEAR_CUT, MIXED, LIGNEOUS, GREENHOUSE, OTHER = range(13, 20)

# What a block is used for.
_TOWN, _WORKS, _FOREST, _FARM, _WILD = range(5)

THEMES: Final = ("UA", "UN", "AU", "AN", "AF", "FA", "FN", "NA")
"""Two letters as in the names of real areas (`Z17_UA`): urban, agricultural, forest, natural."""

_BLOCK_DECK: Final = (_TOWN, _TOWN, _WORKS, _FOREST, _FOREST, *(_FARM,) * 4, _WILD)
_THEME_BLOCKS: Final = {"U": _TOWN, "A": _FARM, "F": _FOREST, "N": _WILD}
_PARCEL_DECKS: Final[dict[int, tuple[int, ...]]] = {
    _FARM: (
        *(AGRICULTURAL,) * 7, *(PLOWED,) * 3, *(HERBACEOUS,) * 5, *(VINEYARD,) * 2,
    ),
    _FOREST: (*(DECIDUOUS,) * 6, *(CONIFEROUS,) * 4, *(BRUSHWOOD,) * 2),
    _WILD: (*(HERBACEOUS,) * 4, *(BRUSHWOOD,) * 2, *(WATER,) * 2, *(BARE_SOIL,) * 2),
    _WORKS: (*(IMPERVIOUS,) * 3, *(PERVIOUS,) * 3, *(BARE_SOIL,) * 2),
    _TOWN: (*(HERBACEOUS,) * 4, PERVIOUS, IMPERVIOUS),
}  # fmt: skip
"""The covers of the parcels in a block, dealt out like cards, so that shares hold locally."""

_RARE_COVERS: Final[dict[int, tuple[int, ...]]] = {
    _FARM: (LIGNEOUS, GREENHOUSE, OTHER),
    _FOREST: (CLEAR_CUT, MIXED),
    _WILD: (CLEAR_CUT, OTHER),
    _WORKS: (OTHER,),
    _TOWN: (OTHER,),
}
_RARE_SHARE: Final = 0.04

_WARP: Final = 7.0  # metres by which roads and boundaries swing, over about 120 m


class Noise:
    """A smooth random field of mean about 0 and standard deviation about 1.

    Args:
        rng: Source of randomness.
        extent: Height and width in metres of the ground that it covers.
        scale: Metres over which the field changes.
    """

    def __init__(self, rng: np.random.Generator, extent: tuple[float, float], scale: float) -> None:
        # Quadratic B-splines weigh neighbours 1/8, 3/4, 1/8 at a knot: they smooth by about 0.6.
        side = int(max(extent) / scale) + 8
        self._knots = rng.standard_normal((side, side)) / 0.6
        self._scale = scale

    def at(self, y: Floats, x: Floats) -> Floats:
        """Return the field's values at points (metres)."""
        rows, columns = self._taps(y), self._taps(x)
        total = np.zeros(y.shape)
        for row, row_weight in rows:
            for column, column_weight in columns:
                total += row_weight * column_weight * self._knots[row, column]
        return total

    def grid(self, y: Floats, x: Floats) -> Floats:
        """Return the field's values on a grid, (len(y),len(x)), of rows y and columns x (m)."""
        across = np.zeros((len(self._knots), len(x)))
        for column, weight in self._taps(x):
            across += weight * self._knots[:, column]
        total = np.zeros((len(y), len(x)))
        for row, weight in self._taps(y):
            total += weight[:, None] * across[row]
        return total

    def _taps(self, place: Floats) -> list[tuple[Ints, Floats]]:
        """Return the three knots that count along one axis, with a quadratic B-spline's weights.

        Places outside take the values at the nearest end.
        """
        knot = place / self._scale + 3
        middle = np.clip(np.round(knot), 1, min(self._knots.shape) - 2).astype(np.int64)
        rest = np.clip(knot - middle, -0.5, 0.5)
        weights = (0.5 * (0.5 - rest) ** 2, 0.75 - rest**2, 0.5 * (0.5 + rest) ** 2)
        return [(middle + step, weight) for step, weight in zip((-1, 0, 1), weights, strict=True)]


@dataclass(frozen=True)
class Surface:
    """The ground on a grid of points: arrays of one shape."""

    cover: NDArray[np.uint8]
    """Class value, 1..19."""
    height: Floats
    """Metres above the ground."""
    variety: Ints
    """Variety of the class, 0..VARIETIES-1, one for each field, stand or building."""
    tone: Floats
    """Brightness of the field or building among its like, -1..1."""
    across: Floats
    """Metres across the rows of a field or across the ridge of a roof."""


class _Cells(NamedTuple):
    """Points of a Voronoi mosaic: their cells, the second nearest, metres to the boundary."""

    first: Ints
    second: Ints
    edge: Floats


def _turn(v: Floats, u: Floats, angle: Floats | float) -> tuple[Floats, Floats]:
    """Return coordinates (v, u) along a direction (radians, from u towards v) and beside it."""
    sine, cosine = np.sin(angle), np.cos(angle)
    return u * cosine + v * sine, v * cosine - u * sine


class _Mosaic:
    """Voronoi cells around a jittered lattice, turned and stretched.

    Args:
        rng: Source of randomness.
        extent: Height and width in metres.
        cell: Mean width of a cell in metres.
        jitter: How far centres leave the lattice, in cells: 0 gives rectangles.
        stretch: Length of a cell over its width.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        extent: tuple[float, float],
        cell: float,
        jitter: float,
        stretch: float = 1.0,
    ) -> None:
        from scipy.spatial import cKDTree

        self.angle = float(rng.uniform(0, np.pi))
        reach = float(np.hypot(*extent)) / 2 + 2 * cell * stretch
        self._middle = (extent[0] / 2, extent[1] / 2)
        self._stretch = stretch
        steps = np.arange(-reach, reach, cell)
        long = np.arange(-reach / stretch, reach / stretch, cell)
        # Every second row is set off by half a cell, as bricks and fields are.
        u, v = (grid.ravel().copy() for grid in np.meshgrid(long, steps, indexing="ij"))
        v += np.where(np.round((u + reach / stretch) / cell) % 2 == 0, 0, cell / 2)
        u += rng.uniform(-jitter, jitter, u.size) * cell
        v += rng.uniform(-jitter, jitter, v.size) * cell
        self._centres = np.stack((u, v), axis=-1)
        self._tree: cKDTree = cKDTree(self._centres)
        self.y, self.x = self._back(u, v)
        self.distance = np.hypot(self.y - self._middle[0], self.x - self._middle[1])

    def __len__(self) -> int:
        return len(self._centres)

    def _local(self, y: Floats, x: Floats) -> Floats:
        """Return points (…,2) along and across the cells, along in widths of a cell."""
        along, across = _turn(x - self._middle[1], y - self._middle[0], self.angle)
        return np.stack((along / self._stretch, across), axis=-1)

    def _back(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        y, x = _turn(v, u * self._stretch, -self.angle)
        return y + self._middle[0], x + self._middle[1]

    def across(self, y: Floats, x: Floats) -> Floats:
        """Return metres across the long side of the cells."""
        return np.asarray(self._local(y, x)[..., 1])

    def nearest(self, y: Floats, x: Floats) -> Ints:
        """Return the cell of each point."""
        return np.asarray(self._tree.query(self._local(y, x))[1], dtype=np.int64)

    def find(self, y: Floats, x: Floats) -> _Cells:
        """Return each point's cell and how far its boundary is (unstretched mosaics only)."""
        distances, cells = self._tree.query(self._local(y, x), k=2)
        first, second = cells[..., 0], cells[..., 1]
        apart = np.linalg.norm(self._centres[second] - self._centres[first], axis=-1)
        edge = (distances[..., 1] ** 2 - distances[..., 0] ** 2) / (2 * apart)
        return _Cells(first.astype(np.int64), second.astype(np.int64), edge)

    def facing(self, cells: _Cells) -> Floats:
        """Return angle (radians, of y against x) of the direction towards the boundary."""
        y, x = self._back(*self._centres.T)
        return np.arctan2(y[cells.second] - y[cells.first], x[cells.second] - x[cells.first])


def _deal(
    rng: np.random.Generator, distance: Floats, deck: tuple[int, ...], where: Bools | None = None
) -> Ints:
    """Give every cell a card, deck after deck from the centre outwards.

    So that each neighbourhood as large as a deck, above all the one around the centre where the
    patches lie, holds every card in its share.
    """
    order = np.argsort(distance, kind="stable")
    if where is not None:
        order = np.concatenate((order[where[order]], order[~where[order]]))
    decks = [rng.permutation(deck) for _ in range(len(order) // len(deck) + 1)]
    cards = np.empty(len(order), dtype=np.int64)
    cards[order] = np.concatenate(decks)[: len(order)]
    return cards


class Landscape:
    """The landscape of one area.

    Args:
        rng: Source of randomness; nothing is drawn after construction.
        extent: Height and width of the area in metres.
        theme: One of `THEMES`: what there is more of than elsewhere.
        altitude: Metres above the sea.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        extent: tuple[float, float],
        theme: str,
        altitude: float,
    ) -> None:
        self._altitude = altitude
        self._middle = (extent[0] / 2, extent[1] / 2)
        self._relief = Noise(rng, extent, 220.0)
        self._steepness = 4 + altitude / 25
        self._warps = (Noise(rng, extent, 120.0), Noise(rng, extent, 120.0))
        self._ragged = Noise(rng, extent, 7.0)
        self._patchy = Noise(rng, extent, 16.0)
        self._crowns = Noise(rng, extent, 4.0)
        self._blocks = _Mosaic(rng, extent, cell=105.0, jitter=0.3)
        deck = _BLOCK_DECK + tuple(_THEME_BLOCKS[letter] for letter in theme)
        self._use = _deal(rng, self._blocks.distance, deck)
        self._block_dice = rng.random(len(self._blocks))
        self._make_parcels(rng, extent)
        self._make_houses(rng, extent)
        self._make_river(rng, extent)

    def _make_parcels(self, rng: np.random.Generator, extent: tuple[float, float]) -> None:
        """Make fields (long, in rows) and stands (roundish), with cover, variety, tone and age."""
        fields = _Mosaic(rng, extent, cell=34.0, jitter=0.18, stretch=1.7)
        stands = _Mosaic(rng, extent, cell=46.0, jitter=0.4)
        self._mosaics = (stands, fields, stands, fields, stands)  # by use
        self._parcels: dict[int, tuple[Ints, Ints, Floats, Floats]] = {}
        for use, deck in _PARCEL_DECKS.items():
            mosaic = self._mosaics[use]
            inside = self._use[self._blocks.nearest(mosaic.y, mosaic.x)] == use
            covers = _deal(rng, mosaic.distance, deck, inside)
            rare = rng.random(len(mosaic)) < _RARE_SHARE
            covers = np.where(rare, rng.choice(_RARE_COVERS[use], len(mosaic)), covers)
            if use == _WILD and self._altitude > 900:
                covers = np.where(rare & (covers == OTHER), SNOW, covers)
            self._parcels[use] = (
                covers,
                rng.integers(0, VARIETIES, len(mosaic)),
                rng.uniform(-1, 1, len(mosaic)),
                rng.random(len(mosaic)),
            )

    def _make_houses(self, rng: np.random.Generator, extent: tuple[float, float]) -> None:
        """Make plots along the streets of towns and in works, most with a building."""
        from scipy.spatial import cKDTree

        plots = _Mosaic(rng, extent, cell=19.0, jitter=0.16)
        halls = _Mosaic(rng, extent, cell=48.0, jitter=0.12)
        y = np.concatenate((plots.y, halls.y))
        x = np.concatenate((plots.x, halls.x))
        hall = np.arange(len(y)) >= len(plots)
        warps = (_WARP * warp.at(y, x) for warp in self._warps)
        cells = self._blocks.find(y + next(warps), x + next(warps))
        use = self._use[cells.first]
        size = rng.random(len(y))
        half_long = np.where(hall, 13 + 9 * size, 6 + 4 * size)
        half_wide = np.where(hall, 9 + 5 * rng.random(len(y)), 4.5 + 2.2 * rng.random(len(y)))
        room = cells.edge - half_wide
        home = (
            ~hall & (use == _TOWN) & (room > 6.0) & (cells.edge < 40) & (rng.random(len(y)) < 0.93)
        )
        works = hall & (use == _WORKS) & (room > 7.0) & (rng.random(len(y)) < 0.85)
        keep = np.flatnonzero(home | works)
        if not len(keep):  # a landscape without houses: one plot far outside keeps lookups simple
            keep = np.array([0])
            y[0] = x[0] = -1e4
        self._house_places = np.stack((y[keep], x[keep]), axis=-1)
        self._house_tree: cKDTree = cKDTree(self._house_places)
        self._house_angle = self._blocks.facing(cells)[keep]
        self._house_long, self._house_wide = half_long[keep], half_wide[keep]
        count = len(keep)
        self._house_height = np.where(hall[keep], 7 + 5 * size[keep], 4 + 6 * rng.random(count))
        self._house_variety = np.where(
            hall[keep], 3, rng.choice(VARIETIES, count, p=(0.5, 0.25, 0.2, 0.05))
        )
        self._house_tone = rng.uniform(-1, 1, count)
        self._house_pool = (rng.random(count) < 0.10) & ~hall[keep]
        self._house_paved = rng.random(count)

    def _make_river(self, rng: np.random.Generator, extent: tuple[float, float]) -> None:
        """Make a winding river that passes near the middle; its water's colour, and the roads'."""
        self._river_angle = rng.uniform(0, np.pi)
        self._river_offset = rng.uniform(-0.14, 0.14) * min(extent)
        self._river_swing = rng.uniform(14, 32), rng.uniform(120, 210), rng.uniform(0, 2 * np.pi)
        self._river_width = rng.uniform(3.5, 9.0)
        self._river_variety = int(rng.integers(0, VARIETIES))
        self._road_variety = int(rng.integers(0, VARIETIES))

    def ground(self, y: float, x: float) -> float:
        """Return metres of the ground above the sea at one point."""
        relief = self._relief.at(np.array([y]), np.array([x]))
        return max(self._altitude + self._steepness * float(relief[0]), 0.0)

    def surface(self, y: Floats, x: Floats) -> Surface:
        """Return the surface on a grid, (len(y),len(x)), of rows y and columns x (metres)."""
        rows, columns = np.meshgrid(y, x, indexing="ij")
        points = rows.ravel(), columns.ravel()
        near_y, near_x = (
            place + _WARP * warp.grid(y, x).ravel()
            for place, warp in zip(points, self._warps, strict=True)
        )
        cells = self._blocks.find(near_y, near_x)
        canvas = _Canvas(
            points,
            (near_y, near_x),
            ragged=self._ragged.grid(y, x).ravel(),
            patchy=self._patchy.grid(y, x).ravel(),
            use=self._use[cells.first],
            edge=cells.edge,
            pair=np.mod(self._block_dice[cells.first] + self._block_dice[cells.second], 1.0),
        )
        for use in _PARCEL_DECKS:
            self._paint_parcels(canvas, use)
        self._paint_margins(canvas)
        self._paint_houses(canvas)
        self._paint_river(canvas)
        self._paint_roads(canvas, self._use[cells.second])
        self._raise(canvas, self._crowns.grid(y, x).ravel())
        return Surface(
            canvas.cover.astype(np.uint8).reshape(rows.shape),
            canvas.height.reshape(rows.shape),
            canvas.variety.reshape(rows.shape),
            canvas.tone.reshape(rows.shape),
            canvas.across.reshape(rows.shape),
        )

    def _paint_parcels(self, canvas: _Canvas, use: int) -> None:
        """Paint fields and stands of the blocks of one use."""
        at = np.flatnonzero(canvas.use == use)
        y, x = (place[at] for place in canvas.near)
        if use in (_FOREST, _WILD):
            y = y + 2.0 * canvas.ragged[at]
            x = x + 2.0 * canvas.patchy[at]
        mosaic = self._mosaics[use]
        parcel = mosaic.nearest(y, x)
        layers = (canvas.cover, canvas.variety, canvas.tone, canvas.age)
        for layer, values in zip(layers, self._parcels[use], strict=True):
            layer[at] = values[parcel]
        canvas.across[at] = mosaic.across(y, x)
        if use == _TOWN:  # gardens with trees
            canvas.put(at[canvas.patchy[at] + 0.5 * canvas.ragged[at] > 1.2], DECIDUOUS)

    def _paint_margins(self, canvas: _Canvas) -> None:
        """Paint hedges and scrub along the boundaries of the open country and of the forest."""
        ragged = 1.2 * canvas.ragged
        hedge = (canvas.use == _FARM) & (canvas.pair > 0.6) & (canvas.edge + ragged < 6)
        canvas.put(hedge & (canvas.pair < 0.8), DECIDUOUS)
        canvas.put(hedge & (canvas.pair >= 0.8), BRUSHWOOD)
        canvas.put((canvas.use == _FOREST) & (canvas.edge + 2 * ragged < 4.5), BRUSHWOOD)
        meadow = (canvas.use == _WILD) & (canvas.cover == HERBACEOUS)
        canvas.put(meadow & (canvas.patchy > 1.0), BRUSHWOOD)

    def _paint_houses(self, canvas: _Canvas) -> None:
        """Paint buildings with their yards, and pools."""
        at = np.flatnonzero((canvas.use == _TOWN) | (canvas.use == _WORKS))
        points = np.stack(canvas.points, axis=-1)[at]
        house = np.asarray(self._house_tree.query(points)[1], dtype=np.int64)
        v, u = (points - self._house_places[house]).T
        ahead, beside = _turn(v, u, self._house_angle[house])
        wide, long = self._house_wide[house], self._house_long[house]
        paved = self._house_paved[house]
        # The yard reaches 12 m towards the street and 2 m around.
        yard = (np.abs(beside) < long + 2) & (ahead > -wide - 2) & (ahead < wide + 12)
        drive = yard & (canvas.use[at] == _TOWN) & (ahead > wide * (2 * paved - 1))
        canvas.put(at[drive & (paved < 0.6)], PERVIOUS)
        canvas.put(at[drive & (paved >= 0.6)], IMPERVIOUS)
        pool = self._house_pool[house] & (
            ((ahead + wide + 5) / 2.6) ** 2 + ((beside - 2) / 4.2) ** 2 < 1
        )
        canvas.put(at[pool], POOL)
        roof = (np.abs(beside) < long) & (np.abs(ahead) < wide)
        spots, owner = at[roof], house[roof]
        canvas.put(spots, BUILDING)
        canvas.variety[spots] = self._house_variety[owner]
        canvas.tone[spots] = self._house_tone[owner]
        canvas.across[spots] = ahead[roof]
        # A gable: the roof falls off from the ridge, on halls hardly.
        fall = np.where(self._house_variety[owner] == 3, 0.05, 0.5)
        canvas.height[spots] = self._house_height[owner] - fall * np.abs(ahead[roof])

    def _paint_river(self, canvas: _Canvas) -> None:
        """Paint the river, its banks of gravel and its trees."""
        y, x = canvas.near
        along, beside = _turn(y - self._middle[0], x - self._middle[1], self._river_angle)
        swing, length, phase = self._river_swing
        course = self._river_offset + swing * np.sin(2 * np.pi * along / length + phase)
        bank = np.abs(beside - course) - self._river_width + canvas.ragged  # below 0 in the water
        canvas.put((bank < 9) & (canvas.patchy > -0.3), DECIDUOUS)
        canvas.put((bank < 5) & (canvas.patchy <= -0.3), BRUSHWOOD)
        canvas.put((bank < 3) & (canvas.patchy < -0.9), BARE_SOIL)
        canvas.put(bank < 0, WATER, self._river_variety)

    def _paint_roads(self, canvas: _Canvas, other: Ints) -> None:
        """Paint streets around towns and works, some roads elsewhere, tracks between the rest."""
        pair = canvas.pair
        built = np.isin(canvas.use, (_TOWN, _WORKS)) | np.isin(other, (_TOWN, _WORKS))
        road = built | (pair < 0.12)
        track = ~road & (pair < 0.62)
        width = np.where(built, 4.2, 3.4) + 0.8 * pair
        canvas.put(built & (canvas.edge < width + 2.2) & (pair > 0.45), PERVIOUS)
        canvas.put(road & (canvas.edge < width), IMPERVIOUS, self._road_variety)
        canvas.put(track & (canvas.edge < 2.2), PERVIOUS, self._road_variety)

    def _raise(self, canvas: _Canvas, crowns: Floats) -> None:
        """Raise the vegetation to its heights; buildings have theirs already."""
        table = np.zeros(20)
        spread = np.zeros(20)
        for cover, mean, change in (
            (CONIFEROUS, 9.0, 2.2), (DECIDUOUS, 8.8, 2.4), (MIXED, 9.0, 2.2), (BRUSHWOOD, 1.6, 0.7),
            (VINEYARD, 1.1, 0.3), (LIGNEOUS, 4.0, 0.8), (CLEAR_CUT, 0.6, 0.5), (GREENHOUSE, 4.0, 0),
            (AGRICULTURAL, 0.4, 0.1), (HERBACEOUS, 0.2, 0.15), (OTHER, 1.0, 1.0),
        ):  # fmt: skip
            table[cover], spread[cover] = mean, change
        height = table[canvas.cover] * (0.6 + 0.7 * canvas.age) + spread[canvas.cover] * crowns
        canvas.height = np.where(canvas.cover == BUILDING, canvas.height, np.maximum(height, 0))


@dataclass
class _Canvas:
    """The points being painted: flat arrays, one value per point."""

    points: tuple[Floats, Floats]
    """y and x."""
    near: tuple[Floats, Floats]
    """y and x where blocks and fields are looked up, so that their boundaries swing."""
    ragged: Floats
    patchy: Floats
    use: Ints
    """What the point's block is used for."""
    edge: Floats
    """Metres to the block's boundary."""
    pair: Floats
    """A number of 0..1 for each boundary, the same from both sides."""

    def __post_init__(self) -> None:
        size = self.ragged.size
        self.cover = np.full(size, HERBACEOUS, dtype=np.int64)
        self.variety = np.zeros(size, dtype=np.int64)
        self.age = np.full(size, 0.5)
        self.tone, self.height, self.across = np.zeros((3, size))

    def put(self, at: Ints | Bools, cover: int, variety: int = 0) -> None:
        """Put another cover at some points, over whatever was there."""
        self.cover[at] = cover
        self.variety[at] = variety
        self.tone[at] = 0.0
        self.height[at] = 0.0
        self.age[at] = 0.5
