"""How the synthetic landscape looks: from an aeroplane, and from Sentinel-2 over a year.

Magnitudes (digital numbers of the aerial bands, reflectances, cloud cover) are calibrated on a few
real FLAIR #2 patches and real Sentinel-2 series. Some classes share their aerial colours on purpose
and differ in their course over the year only: coniferous and deciduous stands; herbaceous,
agricultural and plowed land.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data.sample import landscape as land
from flair2_exp.data.sample.landscape import VARIETIES, Floats, Landscape, Noise, Surface

METRES_PER_UNIT: Final = 0.2
"""Height of one unit of the elevation band."""

_LOOKS: Final = """
building     0.060  158 116 100  84   136 110 100  76   102 106 112  68   190 192 192 108
pervious     0.070  168 160 150  92   158 154 142  96   148 144 132  94   174 166 154 104
impervious   0.070  150 148 146  74   136 138 140  70   164 160 154  78   124 126 130  66
bare_soil    0.080  172 162 142 122   160 148 128 116   178 168 148 126   150 138 118 110
water        0.030   66  84  82  30    84  98  78  40    58  90  96  22    96 108  84  50
coniferous   0.160   66  82  70  88    72  88  73  96    68  83  71  90    76  91  75 101
deciduous    0.160   70  87  72  94    66  81  70  89    77  92  76 104    72  86  72  97
brushwood    0.180   90 100  88 104    84  96  82 100    98 106  92 108    94 100  92  98
vineyard     0.080  158 144 120 106   150 138 116 102   118 122  96 112   164 150 128 110
herbaceous   0.060  106 118  90 120   118 124  97 114   136 132 105 107    99 116  86 125
agricultural 0.055  102 117  89 121   120 125  97 114   144 137 108 105   136 127 104  98
plowed       0.060  142 130 107  97   133 126 102  99   121 121  97 108   147 135 110 101
pool         0.050  110 196 208  40   120 204 214  46    96 184 204  36   128 200 200  44
snow         0.050  236 238 242 214   228 232 238 206   240 242 246 220   222 228 236 200
clear_cut    0.140  138 122 102  98   128 118  98 100   144 130 108 104   132 120 104  94
mixed        0.160   69  85  71  92    70  85  72  93    73  88  74  97    73  88  74  98
ligneous     0.120   94 108  84 112    88 102  80 108   100 112  88 114    92 106  86 108
greenhouse   0.050  196 200 200 124   186 192 194 118   204 206 204 130   190 194 192 120
other        0.050  150 148 142 104   130 130 128  96   164 156 146 108   142 136 130 100
"""
"""By class, in the order of their values: relative standard deviation of the fine texture, then
red, green, blue and near infrared (0..255) of each variety under a standard light."""

_TABLE: Final = np.pad(
    np.array([row.split()[1:] for row in _LOOKS.split("\n")[1:-1]], dtype=float), ((1, 0), (0, 0))
)
_GRAIN: Final = _TABLE[:, 0]
_COLOURS: Final = _TABLE[:, 1:].reshape(20, VARIETIES, 4)
_FIELDS: Final = [land.HERBACEOUS, land.AGRICULTURAL, land.PLOWED]
_DRY: Final = np.array([146.0, 137.0, 108.0, 104.0])
_VINE: Final = np.array([84.0, 102.0, 76.0, 114.0])


class Normals(Protocol):
    """A source of white noise, as NumPy's generators are."""

    def standard_normal(self, size: tuple[int, ...], /) -> Floats:
        """Return independent values of mean 0 and deviation 1."""
        ...


@dataclass(frozen=True)
class Flight:
    """One photographic flight over a domain: when, and how its images look."""

    date: datetime.date
    time: str
    """As in the metadata: "10h33"."""
    camera: str
    sun: tuple[float, float]
    """Azimuth and elevation in radians."""
    gain: Floats
    """Of each of the four spectral bands."""
    haze: Floats
    gamma: float
    dryness: float
    """How far grass and crops have gone towards straw, 0..1."""


def plan_flight(rng: np.random.Generator, year: int) -> Flight:
    """Draw a summer flight with its own light, camera and drought."""
    day = int(rng.integers(0, 120))
    hour, minute = int(rng.integers(9, 16)), int(rng.integers(0, 60))
    number = int(rng.integers(1, 40))
    camera = "UCE-M3-f120-s06" if rng.random() < 0.5 else f"CAMERA#{number:03d}"
    # The sun goes from the east-south-east at 9 h to the south-west at 16 h.
    azimuth = np.radians(110 + (hour + minute / 60 - 9) * 18)
    elevation = np.radians(62 - 3.2 * abs(hour + minute / 60 - 12.5) - 0.08 * day)
    return Flight(
        date=datetime.date(year, 5, 25) + datetime.timedelta(days=day),
        time=f"{hour}h{minute:02d}",
        camera=camera,
        sun=(float(azimuth), float(elevation)),
        gain=rng.uniform(0.86, 1.14) * rng.uniform(0.95, 1.05, 4),
        haze=np.array([6.0, 8.0, 12.0, 3.0]) * rng.uniform(0, 1.5),
        gamma=float(rng.uniform(0.88, 1.14)),
        dryness=float(rng.uniform(0, 0.6)),
    )


def render_patch(
    rng: Normals,
    landscape: Landscape,
    flight: Flight,
    centre: tuple[float, float],
    side: float,
    size: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render the aerial image and the mask of one patch.

    Args:
        rng: Source of the image's noise; the mask does not depend on it.
        landscape: The ground.
        flight: The light.
        centre: The patch's centre (y, x) in metres from the area's north-western corner.
        side: Width of the patch in metres.
        size: Width of the patch in pixels.

    Returns:
        The image, uint8 (5,size,size): red, green, blue, near infrared, elevation (0.2 m a unit);
        and the mask, uint8 (size,size), values 1..19. Below 0.4 m a pixel every 2×2 block of an
        even-sized mask is constant, as in the real masks.
    """
    blocks = 2 if side / size < 0.4 and size % 2 == 0 else 1
    pixel = side / size * blocks
    margin = int(np.ceil(8.0 / pixel))
    count = size // blocks
    steps = (np.arange(-margin, count + margin, dtype=np.float64) + 0.5) * pixel - side / 2
    surface = landscape.surface(centre[0] + steps, centre[1] + steps)
    colour = _paint(surface, flight, pixel)
    colour *= _light(surface.height, flight.sun, pixel)
    inner = (slice(margin, -margin), slice(margin, -margin))
    image = np.concatenate((colour[:, *inner], _measure(rng, surface, pixel, margin)[None]))
    cover = surface.cover[inner]
    if blocks == 2:
        image = image.repeat(2, axis=-2).repeat(2, axis=-1)
        cover = cover.repeat(2, axis=-2).repeat(2, axis=-1)
    return _expose(rng, image, _GRAIN[cover], flight, side / size), cover


def _paint(surface: Surface, flight: Flight, pixel: float) -> Floats:
    """Paint colours (4,…) by class and variety, with the rows of vineyards and fields."""
    table = _COLOURS.copy()
    table[_FIELDS] += flight.dryness * 0.7 * (_DRY - table[_FIELDS])
    colour = table[surface.cover, surface.variety]
    colour *= (1 + 0.09 * surface.tone)[..., None]
    if pixel < 1.6:  # rows narrower than two pixels would only alias
        wave = np.sin(2 * np.pi * surface.across / 3.2)
        vine = ((surface.cover == land.VINEYARD) & (wave > 0.1))[..., None]
        colour = np.where(vine, _VINE, colour)
        rows = np.sin(2 * np.pi * surface.across / 6.4)
        tilled = np.isin(surface.cover, (land.AGRICULTURAL, land.PLOWED)) & (surface.variety != 1)
        colour *= 1 + 0.025 * (rows * tilled)[..., None]
    return np.moveaxis(colour, -1, 0)


def _light(height: Floats, sun: tuple[float, float], pixel: float) -> Floats:
    """Return the brightness by slope towards the sun, and cast shadows."""
    azimuth, elevation = sun
    towards = np.array([-np.cos(azimuth), np.sin(azimuth)])  # y to the south, x to the east
    down, right = np.gradient(height, pixel)
    facing = -(down * towards[0] + right * towards[1])
    light = 1 + 0.16 * np.clip(facing, -1.5, 1.5)
    shadow = np.zeros(height.shape)
    reach = int(np.ceil(8.0 / pixel))
    padded = np.pad(height, reach, mode="edge")
    rows, columns = height.shape
    for step in range(1, reach + 1):
        dy, dx = np.round(step * towards).astype(int)
        shifted = padded[reach + dy : reach + dy + rows, reach + dx : reach + dx + columns]
        rise = step * pixel * np.tan(elevation)
        np.maximum(shadow, (shifted - rise > height + 0.8) * 1.0, out=shadow)
    return np.asarray(light * (1 - 0.45 * shadow))


def _measure(rng: Normals, surface: Surface, pixel: float, margin: int) -> Floats:
    """Return the elevation band: heights as photogrammetry has them, without the margin."""
    from scipy.ndimage import gaussian_filter

    inner = (slice(margin, -margin), slice(margin, -margin))
    blunder = gaussian_filter(rng.standard_normal(surface.height.shape), max(3.0 / pixel, 0.5))
    blunder /= blunder.std()
    blurred = gaussian_filter(surface.height, 0.7 / pixel)
    height = blurred * (1 + 0.22 * blunder) + 0.4 * np.abs(blunder)
    return np.asarray(height[inner] / METRES_PER_UNIT)


def _expose(
    rng: Normals, image: Floats, grain: Floats, flight: Flight, pixel: float
) -> NDArray[np.uint8]:
    """Add texture, optics, the flight's light and noise; return eight bits."""
    from scipy.ndimage import gaussian_filter

    coarse = gaussian_filter(rng.standard_normal(grain.shape), max(0.9 / pixel, 0.5))
    coarse /= coarse.std()
    fine = min(0.7, 0.4 + 0.4 * pixel) * rng.standard_normal(grain.shape)
    texture = 1 + grain * (fine + 0.7 * coarse)
    spectral = image[:4] * texture
    spectral = np.stack([gaussian_filter(band, 0.5) for band in spectral])
    spectral = flight.gain[:, None, None] * spectral + flight.haze[:, None, None]
    spectral = 255 * np.clip(spectral / 255, 0, 1) ** flight.gamma
    spectral += 2.0 * rng.standard_normal(spectral.shape)
    pixels = np.concatenate((spectral, image[4:] + 0.8 * rng.standard_normal(grain.shape)))
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


# Reflectances × 10,000 of B2 B3 B4 B5 B6 B7 B8 B8A B11 B12.
_SPECTRA: Final[dict[str, tuple[int, ...]]] = {
    "green": (320, 560, 330, 850, 2700, 3400, 3650, 3800, 1750, 850),
    "needles": (200, 360, 230, 560, 1650, 2000, 2150, 2250, 1000, 480),
    "leaves": (180, 420, 220, 700, 2500, 3100, 3300, 3400, 1500, 650),
    "litter": (340, 470, 600, 880, 1200, 1350, 1500, 1650, 1900, 1300),
    "heath": (330, 520, 560, 900, 1500, 1750, 1900, 2000, 1900, 1200),
    "straw": (650, 900, 1150, 1500, 1900, 2050, 2200, 2350, 2900, 2000),
    "soil": (720, 1000, 1330, 1650, 1850, 2000, 2200, 2350, 2900, 2450),
    "mineral": (1250, 1550, 1900, 2150, 2250, 2350, 2500, 2600, 3100, 2800),
    "gravel": (1250, 1450, 1620, 1780, 1870, 1950, 2080, 2130, 2400, 2150),
    "asphalt": (980, 1120, 1230, 1320, 1380, 1430, 1520, 1560, 1700, 1560),
    "tiles": (880, 1120, 1580, 1850, 1960, 2060, 2180, 2280, 2550, 2250),
    "slate": (900, 960, 1010, 1080, 1120, 1160, 1220, 1260, 1330, 1230),
    "metal": (2500, 2600, 2700, 2800, 2850, 2900, 2950, 3000, 2900, 2700),
    "water": (480, 500, 330, 260, 220, 210, 180, 170, 90, 60),
    "turbid": (650, 850, 620, 450, 340, 320, 290, 260, 120, 90),
    "pool": (1900, 2000, 900, 600, 500, 450, 400, 350, 200, 150),
    "snow": (9000, 8800, 8900, 9200, 9000, 8900, 9100, 8700, 2800, 3000),
    "cloud": (7200, 6900, 6700, 7000, 7000, 7000, 7200, 6900, 4600, 3600),
}

_GROUNDS: Final = """
building     green/tiles green/tiles green/slate green/metal
pervious     green/gravel
impervious   green/asphalt
bare_soil    green/mineral green/soil green/mineral straw/soil
water        turbid/water
coniferous   needles/litter
deciduous    leaves/litter
brushwood    leaves/heath
vineyard     green/soil green/soil green/straw green/mineral
herbaceous   green/straw
agricultural green/straw green/soil green/straw green/soil
plowed       green/soil
pool         green/pool
snow         green/snow
clear_cut    green/litter
mixed        leaves/needles
ligneous     leaves/soil
greenhouse   green/metal
other        green/gravel green/soil green/asphalt green/straw
"""
"""By class, in the order of their values: what grows on what, for each variety or for all."""


def _season(days: Floats, start: float, end: float, pace: float = 9.0) -> Floats:
    """Rise from 0 to 1 about the day `start` and fall about `end`, over a few `pace` days."""
    up = 1 / (1 + np.exp((start - days) / pace))
    down = 1 / (1 + np.exp((days - end) / pace))
    return np.asarray(up * down)


def _greenness(cover: int, variety: int, days: Floats, late: float) -> Floats:
    """Return the green share of the ground on days of the year where spring is `late` by days."""
    summer = _season(days, 100 + late, 300 - late / 2, 12)
    if cover == land.CONIFEROUS:
        return 0.80 + 0.08 * summer + 0.03 * variety
    if cover in (land.DECIDUOUS, land.MIXED):
        leaves = _season(days, 108 + late + 4 * variety, 300 - late / 2 - 4 * variety, 7)
        return 0.10 + 0.82 * leaves if cover == land.DECIDUOUS else 0.15 + 0.45 * leaves
    if cover == land.BRUSHWOOD:
        return 0.10 + (0.45 + 0.05 * variety) * summer
    if cover == land.VINEYARD:
        return 0.14 + 0.30 * _season(days, 135 + late, 285, 10) + 0.06 * (variety == 2)
    if cover == land.HERBACEOUS:
        drought = _season(days, 185, 255, 10)
        return 0.50 + 0.32 * _season(days, 75 + late, 320, 12) - (0.08 + 0.09 * variety) * drought
    if cover == land.AGRICULTURAL:
        return _crop(variety, days, late)
    if cover == land.PLOWED:
        weeds = ((40, 85), (280, 345), (205, 250), (60, 105))[variety]
        return 0.07 + 0.28 * _season(days, weeds[0] + late, weeds[1], 8)
    if cover in (land.LIGNEOUS, land.CLEAR_CUT):
        return 0.15 + (0.5 if cover == land.LIGNEOUS else 0.3) * summer
    if cover == land.WATER:
        return 0.2 + 0.25 * variety + 0.1 * summer
    return (0.12 if cover == land.PERVIOUS else 0.05) + 0.05 * summer


def _crop(variety: int, days: Floats, late: float) -> Floats:
    """Return the green weeks of winter wheat, maize, rape with a catch crop, spring barley."""
    if variety == 0:
        return 0.12 + 0.40 * _season(days, -40, 182 + late) + 0.38 * _season(days, 80 + late, 175)
    if variety == 1:
        return 0.08 + 0.82 * _season(days, 165 + late, 262, 8)
    if variety == 2:
        catch = _season(days, 250, 380, 8)
        return 0.12 + 0.70 * _season(days, 20 + late, 168 + late, 10) + 0.45 * catch
    return 0.10 + 0.78 * _season(days, 105 + late, 190 + late / 2, 8)


def _courses(rng: np.random.Generator, days: Floats, altitude: float) -> Floats:
    """Draw every variety's reflectance on every day, (T,10,20·VARIETIES), in whole units.

    Whole units make sums over mixed pixels exact, so that no order of summation shows in the files.
    """
    spectra = {name: np.array(values, dtype=np.float64) for name, values in _SPECTRA.items()}
    late = altitude / 60 + rng.normal(0, 5)
    courses = np.zeros((len(days), 10, 20, VARIETIES))
    for cover, row in enumerate(_GROUNDS.split("\n")[1:-1], 1):
        grounds = row.split()[1:]
        for variety in range(VARIETIES):
            plant, ground = grounds[variety % len(grounds)].split("/")
            green = _greenness(cover, variety, days, late + rng.normal(0, 5))
            green = np.clip(green * rng.normal(1, 0.07), 0, 1)[:, None]
            mix = green * spectra[plant] + (1 - green) * spectra[ground]
            courses[:, :, cover, variety] = mix * rng.normal(1, 0.05)
    return np.round(courses).reshape(len(days), 10, 20 * VARIETIES)


@dataclass(frozen=True)
class Series:
    """The satellite series of one area."""

    data: NDArray[np.uint16]
    """(T,10,H,W), reflectance × 10,000."""
    masks: NDArray[np.uint8]
    """(T,2,H,W), probability 0..100 of snow and of cloud."""
    products: list[str]
    """T product names."""


@dataclass(frozen=True)
class _Sky:
    """What stands between the satellite and the ground on each date."""

    days: Floats
    kinds: list[str]
    """"clear", "partial" or "overcast"."""
    snowy: NDArray[np.bool_]


def render_series(
    rng: np.random.Generator,
    landscape: Landscape,
    shape: tuple[int, int],
    year: int,
    altitude: float,
    tile: str,
) -> Series:
    """Render a year of Sentinel-2 acquisitions of an area.

    Args:
        rng: Source of randomness.
        landscape: The ground.
        shape: H and W of the arrays, in pixels of 10 m from the area's north-western corner.
        year: Calendar year of the acquisitions.
        altitude: Metres above the sea: late springs and snow.
        tile: Name of the Sentinel-2 tile for the product names ("T31TCJ").
    """
    dates = _acquisition_dates(rng, year)
    sky = _make_sky(rng, dates, altitude)
    shares, tone = _mix_pixels(landscape, shape)
    courses = _courses(rng, sky.days, altitude)
    data = np.empty((len(dates), 10, *shape), dtype=np.uint16)
    masks = np.empty((len(dates), 2, *shape), dtype=np.uint8)
    open_ground = _open_ground(shares).reshape(shape)
    brightness = (1 + 0.08 * tone.reshape(shape)) / _SAMPLES**2
    for number in range(len(dates)):
        ground = (courses[number] @ shares).reshape(10, *shape) * brightness
        data[number], masks[number] = _acquire(
            rng, ground.astype(np.float32), open_ground, sky, number
        )
    order = _listing_order(rng, len(dates))
    products = _product_names(rng, dates, tile)
    return Series(data[order], masks[order], [products[number] for number in order])


_SAMPLES: Final = 3  # points a side within a satellite pixel


def _mix_pixels(landscape: Landscape, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Count a pixel's points of each variety (20·VARIETIES,H·W); return its mean tone too."""
    rows, columns = (np.arange(side * _SAMPLES) for side in shape)
    surface = landscape.surface((rows + 0.5) * 10 / _SAMPLES, (columns + 0.5) * 10 / _SAMPLES)
    code = surface.cover.astype(np.int64) * VARIETIES + surface.variety
    pixel = rows[:, None] // _SAMPLES * shape[1] + columns // _SAMPLES
    count = shape[0] * shape[1]
    shares = np.bincount((code * count + pixel).ravel(), minlength=20 * VARIETIES * count)
    tone = np.bincount(pixel.ravel(), weights=surface.tone.ravel(), minlength=count)
    return shares.reshape(-1, count).astype(np.float64), tone / _SAMPLES**2


def _open_ground(shares: Floats) -> Floats:
    """Return share of each pixel on which lying snow can be seen from above."""
    cover = np.zeros(20)
    cover[[land.CONIFEROUS, land.DECIDUOUS, land.MIXED]] = 0.65
    cover[[land.BUILDING, land.WATER, land.IMPERVIOUS]] = 0.4
    return np.asarray(1 - np.repeat(cover, VARIETIES) @ shares / _SAMPLES**2)


def _acquisition_dates(rng: np.random.Generator, year: int) -> list[datetime.date]:
    """Draw 20 to 60 dates of a five-day cycle, from two orbits where there are many; sorted."""
    count = int(rng.integers(20, 61))
    start = int(rng.integers(0, 5))
    cycle = np.arange(start, 365, 5)
    if count > 45:
        cycle = np.sort(np.concatenate((cycle, np.arange((start + 3) % 5, 365, 5))))
    chosen = np.sort(rng.choice(cycle, count, replace=False))
    first = datetime.date(year, 1, 1)
    return [first + datetime.timedelta(days=int(day)) for day in chosen]


def _make_sky(rng: np.random.Generator, dates: list[datetime.date], altitude: float) -> _Sky:
    """Draw each date's weather: a third overcast, a quarter partly cloudy, some winter snow.

    Together about 45 % of pixels are cloudy and, over all altitudes, 5 % snowy, as in real series.
    """
    days = np.array([date.timetuple().tm_yday for date in dates], dtype=np.float64)
    count = len(days)
    winter = 0.5 + 0.5 * np.cos(2 * np.pi * (days - 10) / 365)
    overcast = round(count * rng.uniform(0.29, 0.37))
    partial = round(count * rng.uniform(0.22, 0.32))
    weight = 0.6 + winter
    drawn = rng.choice(count, overcast + partial, replace=False, p=weight / weight.sum())
    kinds = np.full(count, "clear", dtype=object)
    kinds[drawn[:overcast]] = "overcast"
    kinds[drawn[overcast:]] = "partial"
    share = min(0.022 + 0.125 * altitude / 1000, 0.22)
    cold = np.flatnonzero((kinds != "overcast") & (winter > 0.45))  # October to April
    weight = winter[cold] ** 3
    number = min(int(count * share + rng.random()), len(cold))
    snowy = np.zeros(count, dtype=bool)
    if number:
        snowy[rng.choice(cold, number, replace=False, p=weight / weight.sum())] = True
    return _Sky(days, [str(kind) for kind in kinds], snowy)


def _acquire(
    rng: np.random.Generator,
    ground: NDArray[np.float32],
    open_ground: Floats,
    sky: _Sky,
    number: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Render one acquisition: snow on the ground, light, clouds with their shadows, noise.

    Returns:
        The frame, uint16 (10,H,W), and the probabilities of snow and cloud, uint8 (2,H,W).
    """
    shape = open_ground.shape
    snow = _snow_cover(rng, shape) if sky.snowy[number] else np.zeros(shape)
    cloud = _cloud_cover(rng, shape, sky.kinds[number])
    white = np.array(_SPECTRA["snow"]) * rng.uniform(0.75, 1.15)
    frame = _blend(ground, white, snow * open_ground)
    light = 1 + 0.06 * np.cos(2 * np.pi * (sky.days[number] - 172) / 365) + rng.normal(0, 0.03)
    aerosol = rng.gamma(2.0, 40.0) * np.linspace(1.6, 0.1, 10)  # most in the blue
    shift = (int(rng.integers(3, 9)), int(rng.integers(2, 7)))
    shadow = np.roll(cloud, (-shift[0], -shift[1]), axis=(0, 1))
    frame *= (light * (1 - 0.5 * np.clip(shadow - cloud, 0, 1))).astype(np.float32)
    frame += aerosol.astype(np.float32)[:, None, None]
    top = np.array(_SPECTRA["cloud"]) * rng.uniform(0.55, 1.5)
    frame = _blend(frame, top, cloud)
    frame *= 1 + 0.03 * rng.standard_normal(frame.shape, dtype=np.float32)
    probabilities = _probabilities(rng, snow, cloud, bright=ground[0] > 1700)
    return np.clip(np.rint(frame), 1, 20000).astype(np.uint16), probabilities


def _blend(frame: NDArray[np.float32], colour: Floats, opacity: Floats) -> NDArray[np.float32]:
    """Put a frame (10,H,W) behind something of a colour (10,) and an opacity (H,W)."""
    weight = opacity.astype(np.float32)
    return frame * (1 - weight) + colour.astype(np.float32)[:, None, None] * weight


def _field(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Floats:
    """Draw a smooth random field over pixels, with finer detail on it."""
    extent = (float(shape[0]), float(shape[1]))
    y, x = (np.arange(side, dtype=np.float64) for side in shape)
    return Noise(rng, extent, scale).grid(y, x) + 0.35 * Noise(rng, extent, scale / 4).grid(y, x)


def _snow_cover(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Draw the share of the ground under snow: most of the area, or drifts."""
    field = _field(rng, shape, 20.0)
    covered = np.quantile(field, 1 - rng.uniform(0.6, 1.0))
    return np.clip(0.6 + (field - covered), 0, 1)


def _cloud_cover(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Floats:
    """Draw the clouds' opacity, 0..1: coherent, with soft edges; cirrus on some clear days."""
    if kind == "clear":
        cirrus = rng.uniform(0.04, 0.16) if rng.random() < 0.25 else 0.0
        return np.clip(cirrus * (1 + 0.5 * _field(rng, shape, 24.0)), 0, 1)
    field = _field(rng, shape, 16.0)
    if kind == "overcast":
        return np.clip(rng.uniform(0.8, 1.0) + 0.06 * field, 0.4, 1)
    cover = rng.uniform(0.1, 0.85)
    return np.clip(0.5 + 1.4 * (field - np.quantile(field, 1 - cover)), 0, 1)


def _probabilities(
    rng: np.random.Generator, snow: Floats, cloud: Floats, bright: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Draw probabilities of snow and cloud (2,H,W) as a good but fallible detector's."""
    keenness = rng.uniform(0.9, 1.25)
    noise = 0.06 * rng.standard_normal((2, *snow.shape))
    mistaken = bright * rng.uniform(0, 0.4, snow.shape)
    seen = (
        np.where(snow > 0, snow * keenness * (1 - cloud) + noise[0], 0),
        np.where(cloud > 0, cloud * keenness + noise[1], 0) + mistaken * (cloud < 0.3),
    )
    return np.clip(np.round(100 * np.stack(seen)), 0, 100).astype(np.uint8)


def _listing_order(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Draw the order in which products are listed: by date, but for one area in five."""
    order = np.arange(count)
    if rng.random() < 0.2:
        first, second = rng.choice(count, 2, replace=False)
        order[[first, second]] = order[[second, first]]
    return order


def _product_names(rng: np.random.Generator, dates: list[datetime.date], tile: str) -> list[str]:
    """Draw names of the real form, with the acquisition date in characters 11..18."""
    orbit = int(rng.integers(1, 144))
    minute, second = int(rng.integers(20, 60)), int(rng.integers(0, 60))
    names = []
    for date in dates:
        satellite = "AB"[date.toordinal() // 5 % 2]
        day = f"{date:%Y%m%d}"
        sensed = f"{day}T10{minute:02d}{second:02d}"
        processed = f"{day}T{int(rng.integers(12, 24)):02d}{int(rng.integers(0, 60)):02d}31"
        names.append(f"S2{satellite}_MSIL2A_{sensed}_N0211_R{orbit:03d}_{tile}_{processed}")
    return names
