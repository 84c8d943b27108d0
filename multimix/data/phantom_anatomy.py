"""Geometry of a synthetic frontal chest: from a random build to a map of X-ray attenuation and a lung mask.

Nothing here is a patient. Every structure is a closed formula evaluated at all pixels at once, in thorax
units: x runs from the spine to the inner chest wall (1 = half the thorax width) and is positive towards the
patient's left, the right of a PA image; y runs down from the lung apex. `t` is y divided by the height of the
right lung, so the apex is t = 0 and the right dome of the diaphragm t = 1. The lung outline follows loosely
the average of public lung masks (JSRT, Montgomery). Attenuation is in nats; 0 is air outside the body.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

Field = npt.NDArray[np.floating]
"""[height, width] values of one quantity at every pixel."""

LUNG_HEIGHT = 1.62  # of an average build, in thorax units
VIEW_SIDE = 2.72  # thorax units across a square film at field of view 1
APEX_MARGIN = 0.10  # part of the film's height above the apex
TABLE_T = np.linspace(-0.7, 2.6, 1651, dtype=np.float32)
BODY_Y = (-1.5, -0.35, -0.22, -0.12, 0.0, 0.12, 0.25, 0.45, 0.65, 0.85, 1.2, 1.6, 2.6)
BODY_HALF_WIDTH = (0.30, 0.32, 0.42, 0.66, 1.02, 1.32, 1.46, 1.46, 1.34, 1.24, 1.22, 1.19, 1.26)
RIB_PAIRS = 10
RIB_SPACING_T = 0.112


@dataclass(frozen=True)
class Build:
    """Normal variation between people; shares of the average unless a unit is named."""

    stoutness: float  # -1 slim to 1 stout
    scale: float
    lung_height: float  # deep inspiration above 1
    heart: float
    aorta: float
    dome_left: float  # how much lower the left dome is, thorax units
    angle_depth: float  # depth of the costophrenic angles below the dome, thorax units
    rotation: float  # shift of the mediastinum towards the patient's left, thorax units
    scoliosis: float  # thorax units
    tilt: float  # radians
    shift: tuple[float, float]  # of the whole body on the film, thorax units
    clavicle: float  # height of the outer clavicle above the inner end, thorax units
    scapula: float  # x of the medial border
    breast: float  # 0 none
    gas: float  # stomach bubble, 0 none
    bone: float
    vessels: float
    airiness: float


@dataclass(frozen=True)
class Film:
    """Thorax coordinates of every pixel."""

    x: Field
    y: Field
    pixel: float  # side of a pixel, thorax units


@dataclass(frozen=True)
class Chest:
    """A drawn chest before it meets the film: attenuation of its parts, lung mask and where the body is."""

    tissue: Field
    air: Field  # attenuation that aerated lung takes away
    vessels: Field
    lung: npt.NDArray[np.bool_]
    body: npt.NDArray[np.bool_]


def sample_build(rng: np.random.Generator, *, habitus: float) -> Build:
    """Draw a build around a hospital's mean habitus (-1 slim to 1 stout)."""
    stout = float(np.clip(habitus + rng.normal(0, 0.35), -1.3, 1.3))
    female = rng.random() < 0.5  # noqa: PLR2004
    return Build(
        stoutness=stout,
        scale=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
        lung_height=float(np.clip(rng.normal(0.98 - 0.10 * stout, 0.07), 0.72, 1.2)),
        heart=float(np.clip(rng.normal(0.95 + 0.12 * stout, 0.16), 0.55, 1.4)),
        aorta=float(rng.uniform(0.3, 1.3)),
        dome_left=float(rng.uniform(0.02, 0.14)),
        angle_depth=float(rng.uniform(0.2, 0.38)),
        rotation=float(rng.normal(0, 0.035)),
        scoliosis=float(rng.normal(0, 0.02)),
        tilt=float(rng.normal(0, 0.02)),
        shift=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.04))),
        clavicle=float(rng.uniform(0.08, 0.24)),
        scapula=float(rng.uniform(0.8, 1.08)),
        breast=float(rng.uniform(0.15, 0.6) * (1 + 0.5 * stout)) if female else 0.0,
        gas=float(max(0.0, rng.normal(0.1, 0.3))),
        bone=float(rng.uniform(0.75, 1.25)),
        vessels=float(rng.uniform(0.6, 1.4)),
        airiness=float(rng.normal(1.0, 0.09)),
    )


def film_of(build: Build, *, height: int, width: int, field_of_view: float) -> Film:
    """Lay a film of [height, width] pixels over the body; a larger field of view shows more and smaller."""
    pixel = VIEW_SIDE * field_of_view / build.scale / np.sqrt(height * width)
    columns = ((np.arange(width) + 0.5 - width / 2) * pixel - build.shift[0]).astype(np.float32)
    rows = ((np.arange(height) + 0.5 - height * APEX_MARGIN) * pixel - build.shift[1]).astype(np.float32)
    cos, sin = np.float32(np.cos(build.tilt)), np.float32(np.sin(build.tilt))
    x = cos * columns[None, :] + sin * rows[:, None]
    y = cos * rows[:, None] - sin * columns[None, :]
    return Film(x, y, float(pixel))


def draw_chest(build: Build, film: Film, rng: np.random.Generator) -> Chest:
    """Draw the normal chest of a build; `rng` places the vessels and the mottle of soft tissue."""
    t = film.y / (LUNG_HEIGHT * build.lung_height)
    spine_x = build.rotation + build.scoliosis * np.sin(np.float32(3.0) * film.y)
    central = film.x - spine_x
    index = np.clip((t - TABLE_T[0]) / (TABLE_T[1] - TABLE_T[0]), 0, TABLE_T.size - 1).astype(np.int32)
    lateral = _lateral_edge()[index]
    margin, hidden = _lung_margins(build, film, central, index, lateral)
    clear = _cover(margin, film.pixel)
    depth = 0.5 + 0.5 * np.sqrt(np.clip(margin / 0.38, 0, 1))
    behind = _cover(hidden - 0.07, 0.16) * 0.3
    air = build.airiness * (1.3 - 0.1 * t) * (clear * depth + (1 - clear) * behind)
    body, inside = _body(build, film, t)
    air *= np.minimum(1, body / 1.4)
    bones = _ribs(build, film, t, central / lateral) + _shoulders(build, film) + _spine(t, central)
    tissue = body + inside * (build.bone * bones + _soft(build, film, t, central, lateral))
    tissue *= 1 + 0.035 * mottle(rng, film.x.shape, 12)
    vessels = build.vessels * _vessels(film, build, rng) * clear * depth
    return Chest(tissue, air, vessels, margin > 0, inside > 0.5)  # noqa: PLR2004


def mottle(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Field:
    """Return smooth noise of about unit variance, `cells` bumps across the film whatever its pixel count."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def _cover(margin: Field, softness: float) -> Field:
    """Turn a signed distance inside an edge into coverage in [0, 1]."""
    drawn: Field = np.clip(margin / softness + 0.5, 0, 1)
    return drawn


def _bump(values: Field, centre: float, width: float) -> Field:
    scaled = (values - np.float32(centre)) / np.float32(width)
    return np.exp(-scaled * scaled)


def _lateral_edge() -> Field:
    """X of the inner chest wall over TABLE_T."""
    t = np.maximum(TABLE_T, 0)
    return 0.4 + 0.56 * (1 - np.exp(-t / 0.2)) ** 0.6 + 0.07 * t - 0.12 * np.maximum(t - 0.8, 0)


def _medial_edges(build: Build) -> tuple[Field, Field]:
    """|x| of the mediastinal border over TABLE_T, patient's right and left: heart, aorta, great vessels."""
    t = TABLE_T
    apex = 0.24 * np.exp(-((np.maximum(t, 0) / 0.035) ** 0.7))
    right = 0.14 + apex + 0.20 * build.heart * _bump(t, 0.84, 0.2) + 0.03 * _bump(t, 0.3, 0.15)
    left = 0.15 + apex + 0.13 * build.aorta * _bump(t, 0.28, 0.075) + 0.07 * _bump(t, 0.46, 0.1)
    return right, left + build.heart * 0.45 * _bump(t, 0.97, 0.29)


def _diaphragm(build: Build, film: Film) -> Field:
    """Y of the diaphragm at each pixel's x: two domes, the patient's right one higher."""
    left = film.x > 0
    from_top = np.abs(film.x) - np.where(left, np.float32(0.5), np.float32(0.44))
    fall = np.where(from_top > 0, np.abs(from_top / 0.56) ** 2.4, (from_top / 0.6) ** 2 * 0.35)
    dome = LUNG_HEIGHT * build.lung_height + np.where(left, np.float32(build.dome_left), np.float32(0))
    return dome + np.float32(build.angle_depth) * fall


def _lung_margins(
    build: Build, film: Film, central: Field, index: npt.NDArray[np.int32], lateral: Field
) -> tuple[Field, Field]:
    """Signed distances inside the visible lung and inside the lung hidden behind heart and diaphragm."""
    right, left = _medial_edges(build)
    side = np.abs(central)
    medial = np.where(central > 0, left[index], right[index])
    wall = lateral - np.abs(film.x)
    below = _diaphragm(build, film) - film.y
    apex = film.y + np.float32(0.001)
    visible = np.minimum(np.minimum(wall, side - medial), np.minimum(below, apex))
    hidden = np.minimum(np.minimum(wall, side - np.float32(0.13)), np.minimum(below + np.float32(0.26), apex))
    return visible, hidden


def _body(build: Build, film: Film, t: Field) -> tuple[Field, Field]:
    """Attenuation of trunk, neck and upper arms, and coverage of the body."""
    rows = np.linspace(BODY_Y[0], BODY_Y[-1], 400, dtype=np.float32)
    knots = np.interp(rows, BODY_Y, BODY_HALF_WIDTH).astype(np.float32)
    half_width = ndimage.gaussian_filter1d(knots, 6) * (1 + 0.07 * build.stoutness)
    index = np.clip((film.y - rows[0]) / (rows[1] - rows[0]), 0, rows.size - 1).astype(np.int32)
    edge = half_width[index]
    chord = np.clip(1 - (film.x / edge) ** 2, 0, 1) ** np.float32(0.4)
    thick = 1.0 + 1.05 / (1 + np.exp(-(t - 0.05) / 0.1)) + 0.35 / (1 + np.exp(-(t - 1.0) / 0.15))
    trunk = thick * (1 + 0.16 * build.stoutness) * chord
    side = np.abs(film.x)
    along = np.clip((side - 1.29) * 0.18 + (film.y - 0.24) * 0.98, 0, 3)
    off = np.hypot(side - 1.29 - 0.18 * along, film.y - 0.24 - 0.98 * along)
    radius = np.float32(0.25 + 0.05 * build.stoutness)
    arm = 1.15 * np.sqrt(np.clip(1 - (off / radius) ** 2, 0, 1)) + 0.3 * _cover(0.065 - off, 0.05)
    inside = np.maximum(_cover(edge - side, 2 * film.pixel), _cover(radius - off, 2 * film.pixel))
    return np.maximum(trunk, arm), inside


def _ribs(build: Build, film: Film, t: Field, across: Field) -> Field:
    """Posterior ribs that fall away from the spine, fainter anterior ribs that return from the chest wall."""
    u = np.abs(across)
    soft = np.float32(max(0.1, 1.2 * film.pixel / (RIB_SPACING_T * LUNG_HEIGHT * build.lung_height)))
    posterior_drop = np.float32(0.25) * u * u - np.float32(0.035) * u
    anterior_drop = np.float32(0.215) + np.float32(0.34) * np.clip(1 - u, 0, 1) ** np.float32(0.9)
    wall = np.clip((1.04 - u) / 0.06, 0, 1)
    posterior = _rib_family(t - posterior_drop, 0.27, soft) * np.clip((u - 0.1) / 0.1, 0, 1) * (0.75 + 0.35 * u)
    anterior = _rib_family(t - anterior_drop, 0.3, soft) * np.clip((u - 0.42) / 0.3, 0, 1) * 0.6
    return 0.30 * wall * (posterior + anterior)


def _rib_family(level: Field, half_width: float, soft: np.float32) -> Field:
    """Draw RIB_PAIRS tubes with dense cortical borders, one every RIB_SPACING_T of `level`."""
    phase = level / np.float32(RIB_SPACING_T) + np.float32(0.2)
    number = np.floor(phase)
    off = phase - number - np.float32(0.5)
    tube = _cover(half_width - np.abs(off), float(soft)) * (0.55 + 0.45 * (off / half_width) ** 2 + 0.35 * off)
    drawn: Field = tube * ((number >= 0) & (number < RIB_PAIRS))
    return drawn


def _spine(t: Field, central: Field) -> Field:
    """Vertebral column with discs and spinous processes."""
    side = np.abs(central)
    disc = np.cos(2 * np.pi * t / np.float32(0.1))
    column = _cover(0.125 - side + 0.012 * disc, 0.09) * (0.26 + 0.05 * disc)
    process = _cover(0.03 - side, 0.04) * np.clip(disc, 0, 1) * 0.08
    transverse = 0.07 * _cover(0.2 - side, 0.12) * np.clip(-disc, 0, 1)
    drawn: Field = (column + process + transverse) * (0.6 + 0.4 * _cover(1.1 - t, 0.4))
    return drawn


def _shoulders(build: Build, film: Film) -> Field:
    """Clavicles, scapulae and humeral heads."""
    side = np.abs(film.x - 2.0 * build.rotation * np.clip(1 - np.abs(film.x), 0, 1))
    s = np.clip((side - 0.11) / 1.1, 0, 1)
    centre = 0.19 - np.float32(build.clavicle) * s + 0.035 * np.sin(2 * np.pi * s)
    off = np.abs(film.y - centre) / (0.05 - 0.012 * np.sin(np.pi * s))
    clavicle = _cover(1 - off, 0.3) * (0.7 + 0.5 * np.minimum(off, 1) ** 2) * _cover(side - 0.12, 0.05)
    clavicle *= _cover(1.2 - side, 0.06)
    border = side - (build.scapula + 0.2 * np.abs(film.y - 0.35))
    blade = _cover(border, 0.05) * _cover(1.25 - side, 0.2) * _cover(0.85 - film.y, 0.15) * _cover(film.y - 0.02, 0.2)
    blade *= 0.14 + 0.16 * np.exp(-np.clip(border, 0, 9) / 0.04)
    head = _cover(0.15 - np.hypot(side - 1.27, film.y - 0.17), 0.06)
    drawn: Field = 0.4 * clavicle + blade + 0.2 * head
    return drawn


def _soft(build: Build, film: Film, t: Field, central: Field, lateral: Field) -> Field:
    """Airways, hila, chest wall, breasts and stomach gas: what soft tissue and gas add or take away."""
    side = np.abs(film.x)
    trachea = -0.42 * _cover(0.065 - np.abs(central + 0.015), 0.05) * _cover(0.36 - t, 0.06)
    bronchi = (
        -0.16 * _cover(0.04 - np.abs(t - 0.36 - 0.28 * np.abs(central)), 0.04) * _cover(0.2 - np.abs(central), 0.06)
    )
    level = t - np.where(film.x > 0, np.float32(0.43), np.float32(0.47))
    hila = 0.26 * build.vessels * np.exp(-(((np.abs(central) - 0.24) / 0.1) ** 2) - (level / 0.1) ** 2)
    wall = 0.18 * np.exp(-(((side - lateral - 0.03) / 0.035) ** 2)) * (t > 0.1) * (t < 1.25)  # noqa: PLR2004
    total = trachea + bronchi + hila + wall
    if build.breast > 0:
        total += build.breast * _breasts(build, film)
    if build.gas > 0:
        dome = LUNG_HEIGHT * build.lung_height + build.dome_left
        far = np.hypot((film.x - 0.5) / 0.24, (film.y - dome - 0.2) / 0.13)
        total -= min(build.gas, 0.7) * _cover(1 - far, 0.3)
    drawn: Field = total
    return drawn


def _breasts(build: Build, film: Film) -> Field:
    """Two rounded shadows over the lung bases with a distinct lower border."""
    size = 0.40 + 0.07 * build.stoutness
    low = np.hypot((np.abs(film.x) - 0.66) / size, (film.y - 1.22 * build.lung_height) / (size + 0.05))
    upper = np.clip((film.y - 0.7) / 0.6, 0, 1)
    drawn: Field = 0.75 * _cover(1 - low, 0.12) * np.sqrt(np.clip(1.15 - low * low, 0, 1)) * upper
    return drawn


def _vessels(film: Film, build: Build, rng: np.random.Generator) -> Field:
    """Pulmonary vessels: a tree from each hilum that forks, thins and fades towards the periphery."""
    height, width = film.x.shape
    picture = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(picture)
    tall = LUNG_HEIGHT * build.lung_height
    for sign in (-1.0, 1.0):
        angles = np.linspace(-1.3, 1.4, 10) + rng.normal(0, 0.2, 10)
        hilum = (0.43 if sign > 0 else 0.47) * tall + 0.16 * np.sin(angles)
        ends = np.stack([np.full(10, 0.2 * sign + build.rotation), hilum], axis=1)
        for generation in range(5):
            length = (0.15, 0.16, 0.15, 0.13, 0.11)[generation] * rng.uniform(0.5, 1.3, angles.size)
            starts = ends
            step = np.stack([sign * np.cos(angles), np.sin(angles) * 1.25], axis=1)
            ends = starts + length[:, None] * step
            _draw_branches(pen, film, build, np.hstack([starts, ends]), generation)
            fork = rng.uniform(0.12, 0.5, angles.size)
            angles = np.concatenate([angles + fork, angles - fork * rng.uniform(0.3, 1.0, angles.size)])
            ends = np.concatenate([ends, ends])
            alive = rng.random(angles.size) < (0.85, 0.75, 0.65, 0.6, 0.0)[generation]
            angles, ends = angles[alive], ends[alive]
    lines = np.asarray(picture.reduce(2), dtype=np.float32) / 255
    drawn: Field = np.float32(0.34) * ndimage.gaussian_filter(lines, max(0.4, 0.012 / film.pixel), truncate=3)
    return drawn


def _draw_branches(
    pen: ImageDraw.ImageDraw,
    film: Film,
    build: Build,
    branches: Field,
    generation: int,
) -> None:
    """Draw one generation of branches, thorax units [branches, 4], on a picture twice the film's size."""
    thickness = (0.04, 0.03, 0.024, 0.018, 0.014)[generation] * 2 / film.pixel
    line = max(1, round(thickness))
    shade = int((255, 215, 180, 150, 120)[generation] * min(1.0, thickness / line))
    height, width = film.x.shape
    origin = np.array([width / 2, height * APEX_MARGIN])
    cos, sin = np.cos(build.tilt), np.sin(build.tilt)
    turn = np.array([[cos, sin], [-sin, cos]])
    points = np.hstack([branches[:, :2] @ turn, branches[:, 2:] @ turn]) + np.tile(build.shift, 2)
    for branch in (2 * (points / film.pixel + np.tile(origin, 2))).tolist():
        pen.line(branch, fill=shade, width=line)
