"""Draws one skeleton as a clothed person.

Owns how a figure looks. Which skeletons are drawn, and into which files, belongs to draw.py.

Keypoints are OpenPose BODY_25: 0 nose, 1 neck, 2-4 right shoulder, elbow, wrist, 5-7 left, 8 mid
hip, 9-11 right hip, knee, ankle, 12-14 left, 15 and 16 right and left eye, 17 and 18 right and left
ear, 19-21 left big toe, small toe, heel, 22-24 right.
"""

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 256  # px, as in the published set
_SUPERSAMPLE = 2  # drawn at twice the size and averaged: smooth edges, which Pillow's shapes lack

_NOSE, _NECK, _MID_HIP = 0, 1, 8
_ARMS = {"right": (2, 3, 4), "left": (5, 6, 7)}
_LEGS = {"right": (9, 10, 11), "left": (12, 13, 14)}
_FEET = {"right": (22, 23, 24), "left": (19, 20, 21)}
_EARS = {"right": 17, "left": 18}

Color = tuple[int, int, int]
Point = tuple[float, float]
Choice = TypeVar("Choice")

_SKINS: tuple[Color, ...] = (
    (255, 224, 196),
    (246, 205, 170),
    (232, 184, 144),
    (214, 158, 116),
    (186, 128, 88),
    (152, 100, 66),
    (118, 76, 50),
    (88, 56, 40),
)
_HAIRS: tuple[Color, ...] = (
    (34, 28, 28),
    (58, 40, 30),
    (92, 60, 38),
    (140, 92, 52),
    (206, 164, 96),
    (150, 66, 36),
    (150, 148, 148),
)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one person wears and is; independent of the pose."""

    width: float  # of body and limbs, 1 is average
    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color
    sleeve: float  # part of the arm that is covered: 0 none, 1 upper arm, 2 all
    trouser_leg: float  # part of the leg that is covered: 1 thigh, 2 all
    hair_length: float  # 0 bald, below 1 short, above 1 long
    hem: float  # how far the shirt hangs over the hips


@dataclass(frozen=True, kw_only=True)
class _Body:
    """One skeleton on the canvas."""

    points: tuple[Point | None, ...]  # 25, px from the upper left corner; None: not found
    neck: Point
    mid_hip: Point
    unit: float  # px from neck to mid hip when seen from the side
    axis: Point  # unit vector from mid hip to neck
    view: str  # "front", "back" or "side"
    near: str  # the side of the body that is nearer to us: "left" or "right"
    face: Point | None  # where the nose points to, from the centre of the head; None: hidden


def draw_figure(
    keypoints: np.ndarray, rng: np.random.Generator, size: int = IMAGE_SIZE
) -> Image.Image:
    """Draw one skeleton as a clothed person in front of a calm background.

    All that is random (clothes, width, rotation up to 8 degrees, scale, place, background, noise,
    blur) comes from `rng`, none of it from the class. Both sides of the body look alike: left and
    right can be told by the pose and the face alone.

    Args:
        keypoints: (25, 2) numbers, BODY_25, y up, any unit; (0, 0) is a keypoint that was not
            found. A part of the body without its keypoints is left out, as if hidden.
        rng: source of all that is random; advanced by the call.
        size: width and height, px, at least 32.

    Returns:
        RGB image of size x size.

    Raises:
        ValueError: wrong shape or size, or neither a mid hip nor two shoulders to hang it under.
    """
    keypoints = np.asarray(keypoints, dtype=np.float64)
    if keypoints.shape != (25, 2):
        raise ValueError(f"keypoints must have shape (25, 2), got {keypoints.shape}")
    if not np.isfinite(keypoints).all():
        raise ValueError(
            "keypoints must be finite, got inf or nan; give (0, 0) for one that was not found"
        )
    if size < 32:
        raise ValueError(f"size must be at least 32 px, got {size}")
    keypoints = _complete_trunk(keypoints)
    found = (keypoints != 0).any(axis=1)

    look, background, floor = _choose_look(rng)
    body = _place_body(keypoints, found, look, rng, size * _SUPERSAMPLE)
    canvas = _draw_background(body, background, floor, rng, size)
    _draw_body(ImageDraw.Draw(canvas), body, look)
    return _photograph(canvas, rng)


def _complete_trunk(keypoints: np.ndarray) -> np.ndarray:
    """Put a neck between the shoulders and a mid hip under it where they were not found."""
    keypoints = keypoints.copy()
    neck, mid_hip, shoulders = keypoints[_NECK], keypoints[_MID_HIP], keypoints[[2, 5]]
    breadth = math.dist(*shoulders) if (shoulders != 0).any(axis=1).all() else 0.0
    if not neck.any() and breadth:
        neck[:] = shoulders.mean(axis=0)
    if not mid_hip.any() and neck.any() and breadth:
        # Three planks hold only an upper half. A standing trunk is 1.7 shoulder widths long.
        mid_hip[:] = neck - (0, 1.7 * breadth)
    if not neck.any() or not mid_hip.any() or math.dist(neck, mid_hip) < 1e-6:
        raise ValueError(
            "keypoints must hold a neck (1) and a mid hip (8) apart from it, or both shoulders "
            "(2, 5) to stand in for one; found neither"
        )
    return keypoints


def _choose_look(rng: np.random.Generator) -> tuple[_Look, Color, Color]:
    """Choose a person's look, the colour of the wall and that of the floor."""
    wall = _hsv(rng.uniform(), rng.uniform(0.03, 0.20), rng.uniform(0.60, 0.95))
    floor = _scale_color(_blend(wall, _hsv(rng.uniform(), 0.3, 0.7), 0.4), rng.uniform(0.70, 0.95))
    skin = _pick(rng, _SKINS)
    # Clothes keep off the colours behind and beside them: the figure must be seen.
    shirt = _distinct_color(rng, (wall, skin))
    trousers = _distinct_color(rng, (wall, floor, shirt))
    look = _Look(
        width=rng.uniform(0.85, 1.25),
        skin=_scale_color(skin, rng.uniform(0.94, 1.03)),
        hair=_scale_color(_pick(rng, _HAIRS), rng.uniform(0.85, 1.15)),
        shirt=shirt,
        trousers=trousers,
        shoes=_distinct_color(rng, (floor, trousers)),
        sleeve=_pick(rng, (0.0, 0.65, 0.65, 0.8, 1.9, 1.9, 1.9)),
        trouser_leg=_pick(rng, (0.7, 0.85, 1.85, 1.9, 1.9, 1.9)),
        hair_length=_pick(rng, (0.0, 0.8, 0.8, 1.0, 1.0, 1.6, 2.0)),
        hem=rng.uniform(0.0, 0.12),
    )
    return look, wall, floor


def _place_body(
    keypoints: np.ndarray, found: np.ndarray, look: _Look, rng: np.random.Generator, size: int
) -> _Body:
    """Turn, scale and shift the skeleton so that the whole person lies on a canvas of `size` px."""
    angle = math.radians(rng.uniform(-8, 8))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    xy = (keypoints * (1, -1)) @ turn.T  # from here on y points down, as on the canvas
    unit = _body_unit(xy, found)

    # Room for what is drawn around the keypoints: hair and hands, soles, clothes.
    margin = 0.30 * unit
    low, high = xy[found].min(axis=0) - margin, xy[found].max(axis=0) + margin
    scale = rng.uniform(0.72, 0.97) * size / (high - low).max()
    room = size - scale * (high - low)
    shift = room * (rng.uniform(0.1, 0.9), rng.uniform(0.35, 0.95)) - scale * low
    xy = xy * scale + shift
    unit *= scale

    axis = xy[_NECK] - xy[_MID_HIP]
    axis /= np.hypot(*axis)
    # How far the left shoulder lies to our right of the right one when the body stands upright.
    across = np.array([-axis[1], axis[0]])
    breadth = float((xy[5] - xy[2]) @ across) / unit if found[2] and found[5] else 0.0
    view = "front" if breadth > 0.3 else "back" if breadth < -0.3 else "side"

    ears = [side for side in ("right", "left") if found[_EARS[side]]]
    looks_right = found[_NOSE] and (xy[_NOSE] - xy[_NECK]) @ across > 0
    # Whoever looks to our right shows us the right side.
    near = ears[0] if len(ears) == 1 else "right" if looks_right else "left"

    points = tuple(
        (float(x), float(y)) if ok else None for (x, y), ok in zip(xy, found, strict=True)
    )
    body = _Body(
        points=points,
        neck=(float(xy[_NECK, 0]), float(xy[_NECK, 1])),
        mid_hip=(float(xy[_MID_HIP, 0]), float(xy[_MID_HIP, 1])),
        unit=unit,
        axis=(float(axis[0]), float(axis[1])),
        view=view,
        near=near,
        face=None,
    )
    nose = points[_NOSE]
    if nose is None:
        return body
    head = _head_center(body)
    return replace(body, face=(nose[0] - head[0], nose[1] - head[1]))


def _body_unit(xy: np.ndarray, found: np.ndarray) -> float:
    """Length from neck to hip without foreshortening: the middle of three estimates."""

    def longest(*bones: tuple[int, int]) -> float:
        return max(
            (math.dist(xy[a], xy[b]) for a, b in bones if found[a] and found[b]), default=0.0
        )

    torso = longest((_NECK, _MID_HIP))
    # Median proportions of the standing skeletons: torso 0.34, thigh 0.24, shank 0.23.
    thigh = 1.42 * longest((9, 10), (12, 13))
    shank = 1.48 * longest((10, 11), (13, 14))
    return sorted((torso, thigh or torso, shank or torso))[1]


def _head_center(body: _Body) -> Point:
    """Centre of the head: between the ears, else the one ear, else by the nose and the neck."""
    neck, unit = body.neck, body.unit
    ears = [ear for ear in (body.points[17], body.points[18]) if ear is not None]
    nose = body.points[_NOSE]
    above = _move(neck, body.axis, 0.40 * unit)
    if ears:
        # In profile the only ear lies in the middle of the head.
        center = _mid(ears[0], ears[1]) if len(ears) == 2 else ears[0]
    else:
        center = above if nose is None else _mid(nose, above)
    # A head far from its neck is a wrong detection: keep it on the body.
    reach = math.dist(center, neck)
    limit = 0.55 * unit
    if reach > limit:
        center = _lerp(neck, center, limit / reach)
    return center


# ---- painting ----


def _draw_body(draw: ImageDraw.ImageDraw, body: _Body, look: _Look) -> None:
    """Paint the person from back to front."""
    far = "left" if body.near == "right" else "right"
    if body.view == "front":
        _draw_hidden_arms(draw, body, look)
        _draw_leg(draw, body, look, far)
        _draw_leg(draw, body, look, body.near)
        _draw_torso(draw, body, look)
        _draw_head(draw, body, look)
        _draw_arm(draw, body, look, far)
        _draw_arm(draw, body, look, body.near)
    elif body.view == "back":
        _draw_arm(draw, body, look, far)
        _draw_arm(draw, body, look, body.near)
        _draw_leg(draw, body, look, far)
        _draw_leg(draw, body, look, body.near)
        _draw_torso(draw, body, look)
        _draw_head(draw, body, look)
    else:
        _draw_arm(draw, body, look, far)
        _draw_leg(draw, body, look, far)
        _draw_leg(draw, body, look, body.near)
        _draw_torso(draw, body, look)
        _draw_head(draw, body, look)
        _draw_arm(draw, body, look, body.near)


def _draw_hidden_arms(draw: ImageDraw.ImageDraw, body: _Body, look: _Look) -> None:
    """Upper arms whose hand was not found: it is behind the back."""
    for side, (_, _, wrist) in _ARMS.items():
        if body.points[wrist] is None:
            _draw_arm(draw, body, look, side, hidden=True)


def _draw_arm(
    draw: ImageDraw.ImageDraw, body: _Body, look: _Look, side: str, hidden: bool = False
) -> None:
    shoulder, elbow, wrist = (body.points[k] for k in _ARMS[side])
    if shoulder is None or elbow is None or (wrist is None and body.view == "front" and not hidden):
        return
    thick = body.unit * look.width
    radii = (0.105 * thick, 0.082 * thick, 0.060 * thick)
    joints = (shoulder, elbow) if wrist is None else (shoulder, elbow, wrist)
    shade = _is_far(body, side)
    if wrist is not None:
        hand = _beyond(elbow, wrist, 0.11 * body.unit)
        _paint_limb(draw, (wrist, hand), (0.058 * thick, 0.066 * thick), look.skin, shade)
    _paint_limb(draw, joints, radii, look.skin, shade)
    if look.sleeve:
        wide = tuple(1.13 * r for r in radii)
        _paint_limb(draw, *_cut(joints, wide, look.sleeve), look.shirt, shade)


def _draw_leg(draw: ImageDraw.ImageDraw, body: _Body, look: _Look, side: str) -> None:
    hip, knee, ankle = (body.points[k] for k in _LEGS[side])
    if hip is None or knee is None:
        return
    thick = body.unit * look.width
    radii = (0.160 * thick, 0.115 * thick, 0.072 * thick)
    joints = (hip, knee) if ankle is None else (hip, knee, ankle)
    shade = _is_far(body, side)
    _paint_limb(draw, joints, radii, look.skin, shade)
    if ankle is not None:
        _draw_shoe(draw, body, look, side, (knee, ankle))
    wide = tuple(1.10 * r for r in radii)
    _paint_limb(draw, *_cut(joints, wide, look.trouser_leg), look.trousers, shade)


def _draw_shoe(
    draw: ImageDraw.ImageDraw, body: _Body, look: _Look, side: str, shank: tuple[Point, Point]
) -> None:
    """The shoe below a `shank`, which goes from knee to ankle."""
    knee, ankle = shank
    unit = body.unit
    toes = [toe for toe in (body.points[k] for k in _FEET[side][:2]) if toe is not None]
    heel = body.points[_FEET[side][2]] or _beyond(knee, ankle, 0.07 * unit)
    toe = _mid(toes[0], toes[-1]) if toes else _beyond(knee, ankle, 0.14 * unit)
    # A foot is no longer than a shank; what is farther off is a wrong detection.
    length = math.dist(heel, toe)
    if length > 0.5 * unit:
        toe = _lerp(heel, toe, 0.3 * unit / length)
    if math.dist(heel, ankle) > 0.4 * unit:
        heel = ankle
    thick = unit * min(look.width, 1.1)
    radii = (0.065 * thick, 0.072 * thick, 0.064 * thick)
    _paint_limb(draw, (ankle, heel, toe), radii, look.shoes, _is_far(body, side))


def _draw_torso(draw: ImageDraw.ImageDraw, body: _Body, look: _Look) -> None:
    points, unit = body.points, body.unit
    thick = unit * look.width
    neck, mid_hip = body.neck, body.mid_hip
    shoulders = [points[k] or neck for k in (2, 5)]
    hips = [points[k] or mid_hip for k in (9, 12)]
    waist = [_lerp(s, h, 0.62) for s, h in zip(shoulders, hips, strict=True)]
    hem = [_beyond(neck, h, look.hem * unit) for h in hips]
    _paint_hull(draw, [*hips, _lerp(mid_hip, neck, 0.2)], 0.150 * thick, look.trousers)
    # One outline around both halves, then both without: no seam at the waist.
    parts = (
        (
            shoulders + waist + [_lerp(neck, mid_hip, 0.1)],
            (0.105 * thick,) * 2 + (0.13 * thick,) * 3,
        ),
        (waist + hem, (0.13 * thick,) * 2 + (0.150 * thick,) * 2),
    )
    for grow, color in ((_outline(unit), _edge(look.shirt)), (0.0, look.shirt)):
        for centers, radii in parts:
            draw.polygon(_hull(centers, [r + grow for r in radii]), fill=color)
    if body.view == "back":
        return
    # The neckline: a front is told from a back by more than its face.
    depth = 0.20 if body.view == "front" else 0.08
    wide = 0.085 * thick
    across = (-body.axis[1], body.axis[0])
    top = _move(neck, body.axis, 0.10 * unit)
    draw.polygon(
        [
            _move(top, across, wide),
            _move(neck, body.axis, -depth * unit),
            _move(top, across, -wide),
        ],
        fill=_edge(look.skin, 0.90),
    )


def _draw_head(draw: ImageDraw.ImageDraw, body: _Body, look: _Look) -> None:
    neck, unit = body.neck, body.unit
    center = _head_center(body)
    reach = math.dist(neck, center)
    up = ((center[0] - neck[0]) / reach, (center[1] - neck[1]) / reach) if reach else body.axis
    _paint_limb(draw, (neck, center), (0.085 * unit * look.width, 0.085 * unit), look.skin, True)

    tall, wide = 0.270 * unit, 0.205 * unit
    across = (-up[1], up[0])
    turn = 0.0  # of the face: -1 to our left, 0 towards us, 1 to our right
    if body.face is not None:
        turn = (body.face[0] * across[0] + body.face[1] * across[1]) / wide
        turn = max(-1.0, min(1.0, turn))
    bald = not look.hair_length
    hair = look.skin if bald else look.hair
    hair_center = _move(_move(center, up, 0.03 * unit), across, -0.06 * unit * turn)
    grow = _outline(unit)
    if look.hair_length > 1:
        tail = _move(hair_center, up, -0.24 * unit * (look.hair_length - 0.7))
        centers = (hair_center, _move(tail, across, -0.05 * unit * turn))
        for extra, color in ((grow, _edge(hair)), (0.0, hair)):
            draw.polygon(_hull(centers, (wide + extra, 0.8 * wide + extra)), fill=color)
        if body.face is not None:  # the throat, in front of the hair
            _paint_limb(draw, (neck, center), (0.08 * unit,) * 2, _edge(look.skin, 0.9), False)
    if body.face is None:
        _paint_ellipse(draw, hair_center, up, (0.97 * tall, 1.04 * wide), hair, grow)
        return

    # The face reaches below the hair, so that hair frames it and makes no beard.
    face_center = _move(_move(center, up, -0.045 * unit), across, 0.055 * unit * turn)
    if bald:
        face_center = _move(face_center, up, 0.04 * unit)
    else:
        crown = _move(hair_center, up, 0.30 * tall * (1.2 - min(look.hair_length, 1.0)))
        _paint_ellipse(draw, crown, up, (0.92 * tall, 1.06 * wide), hair, grow)
    radii = (tall if bald else 0.84 * tall, 0.92 * wide)
    _paint_ellipse(draw, face_center, up, radii, look.skin, grow if bald else 0.5 * grow)
    _draw_face(draw, look, unit, face_center, up, turn)


def _draw_face(
    draw: ImageDraw.ImageDraw, look: _Look, unit: float, center: Point, up: Point, turn: float
) -> None:
    """Eyes, nose and mouth of a face that turns by `turn` (-1 to 1) to our right."""
    across = (-up[1], up[0])
    dark = _scale_color(look.skin, 0.35)
    shift = 0.10 * unit * turn
    for side in (-1, 1):
        offset = side * 0.075 * unit * (1 - 0.35 * abs(turn)) + shift
        if abs(offset) > 0.155 * unit:  # the eye on the far side of a profile
            continue
        eye = _move(_move(center, up, 0.035 * unit), across, offset)
        _dot(draw, eye, 0.026 * unit, dark)
    nose = _move(_move(center, up, -0.03 * unit), across, 1.45 * shift)
    _dot(draw, nose, 0.026 * unit, _edge(look.skin, 0.80))
    mouth = _move(_move(center, up, -0.115 * unit), across, 0.9 * shift)
    half = 0.055 * unit * (1 - 0.4 * abs(turn))
    ends = [_move(mouth, across, -half), _move(mouth, across, half)]
    draw.line(ends, fill=_blend(dark, (170, 50, 50), 0.5), width=max(1, round(0.025 * unit)))


def _draw_background(
    body: _Body, wall: Color, floor: Color, rng: np.random.Generator, size: int
) -> Image.Image:
    """Wall, floor, a few shapes and the person's shadow; (size * _SUPERSAMPLE) px."""
    # Drawn small and enlarged: out of focus at no cost.
    small = size // 2
    ratio = small / (size * _SUPERSAMPLE)
    canvas = Image.new("RGB", (small, small), wall)
    draw = ImageDraw.Draw(canvas)
    feet = max(p[1] for p in body.points if p is not None) * ratio
    horizon = feet - rng.uniform(0.02, 0.22) * small
    for _ in range(rng.integers(0, 5)):
        _draw_wall_shape(draw, wall, rng, small)
    draw.rectangle((0, horizon, small, small), fill=floor)
    if rng.uniform() < 0.5:  # skirting board
        draw.line((0, horizon, small, horizon), fill=_scale_color(floor, 0.85), width=2)

    grounded = [p for p in body.points if p is not None and p[1] * ratio > feet - 0.12 * small]
    left, right = (f(p[0] for p in grounded) * ratio for f in (min, max))
    grow = 0.35 * body.unit * ratio
    shadow = (left - grow, feet - 0.10 * grow, right + grow, feet + 0.55 * grow)
    draw.ellipse(shadow, fill=_scale_color(floor, 0.80))
    canvas = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.5)))
    return canvas.resize((size * _SUPERSAMPLE,) * 2, Image.Resampling.BILINEAR)


def _draw_wall_shape(
    draw: ImageDraw.ImageDraw, wall: Color, rng: np.random.Generator, size: int
) -> None:
    """One picture, window, ball or leaf, in a colour near that of the wall."""
    x, y = rng.uniform(-0.1, 1.0, size=2) * size
    w, h = rng.uniform(0.08, 0.45, size=2) * size
    color = _blend(wall, _hsv(rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.4, 1)), 0.35)
    kind = rng.integers(0, 4)
    if kind == 0:
        draw.rectangle((x, y, x + w, y + h), fill=color, outline=_scale_color(color, 0.8), width=2)
    elif kind == 1:
        draw.ellipse((x, y, x + w, y + h), fill=color)
    elif kind == 2:
        draw.rectangle((x, -1, x + 0.5 * w, size), fill=color)
    else:
        draw.polygon([(x, y), (x + w, y + 0.3 * h), (x + 0.4 * w, y + h)], fill=color)


def _photograph(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale the canvas down, add blur, light and sensor noise."""
    image = canvas.reduce(_SUPERSAMPLE)
    blur = rng.uniform(-0.3, 0.9)  # px; a third of the images stay sharp
    if blur > 0:
        image = image.filter(ImageFilter.BoxBlur(blur))
    width, height = image.size
    light = rng.uniform(0.85, 1.1)
    strength = rng.uniform(0.02, 0.09)
    # Triangular noise from two bytes per pixel: cheaper than normal noise, and integers only.
    raw = np.frombuffer(rng.bytes(2 * width * height), dtype=np.uint8).astype(np.int16)
    raw = raw.reshape(2, height, width, 1)
    noise = ((raw[0] - raw[1]) * np.int16(round(strength * 256))) >> 8
    table = np.minimum(np.arange(256) * light, 255).astype(np.int16)
    pixels = np.clip(table[np.asarray(image)] + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


# ---- shapes ----


def _paint_limb(
    draw: ImageDraw.ImageDraw,
    joints: Iterable[Point],
    radii: Iterable[float],
    color: Color,
    shade: bool,
) -> None:
    """A chain of tapered capsules with an outline around the whole chain; darker when `shade`."""
    joints, radii = tuple(joints), tuple(radii)
    if shade:
        color = _scale_color(color, 0.86)
    grow = max(1.5, 0.12 * max(radii))
    for extra, fill in ((grow, _edge(color)), (0.0, color)):
        for k in range(len(joints) - 1):
            _capsule(draw, joints[k], joints[k + 1], radii[k] + extra, radii[k + 1] + extra, fill)


def _capsule(
    draw: ImageDraw.ImageDraw, start: Point, end: Point, r0: float, r1: float, fill: Color
) -> None:
    _dot(draw, start, r0, fill)
    _dot(draw, end, r1, fill)
    length = math.dist(start, end)
    if length:
        nx, ny = (end[1] - start[1]) / length, (start[0] - end[0]) / length
        draw.polygon(
            [
                (start[0] + nx * r0, start[1] + ny * r0),
                (end[0] + nx * r1, end[1] + ny * r1),
                (end[0] - nx * r1, end[1] - ny * r1),
                (start[0] - nx * r0, start[1] - ny * r0),
            ],
            fill=fill,
        )


def _paint_hull(
    draw: ImageDraw.ImageDraw, centers: list[Point], radius: float, color: Color
) -> None:
    grow = max(1.5, 0.08 * radius)
    draw.polygon(_hull(centers, [radius + grow] * len(centers)), fill=_edge(color))
    draw.polygon(_hull(centers, [radius] * len(centers)), fill=color)


def _paint_ellipse(
    draw: ImageDraw.ImageDraw,
    center: Point,
    up: Point,
    radii: tuple[float, float],
    color: Color,
    grow: float,
) -> None:
    """A turned ellipse with an outline; `radii` in px, along `up` and across."""
    tall, wide = radii
    for extra, fill in ((grow, _edge(color)), (0.0, color)):
        a, b = wide + extra, tall + extra
        draw.polygon(
            [
                (
                    center[0] - a * c * up[1] + b * s * up[0],
                    center[1] + a * c * up[0] + b * s * up[1],
                )
                for c, s in _CIRCLE
            ],
            fill=fill,
        )


def _dot(draw: ImageDraw.ImageDraw, center: Point, radius: float, fill: Color) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


_CIRCLE = tuple((math.cos(k * math.tau / 24), math.sin(k * math.tau / 24)) for k in range(24))


def _hull(centers: Iterable[Point], radii: Iterable[float]) -> list[Point]:
    """Corners of the convex hull of circles (Andrew's monotone chain)."""
    cloud = sorted(
        (x + r * c, y + r * s) for (x, y), r in zip(centers, radii, strict=True) for c, s in _CIRCLE
    )
    corners: list[Point] = []
    for ordered in (cloud, cloud[::-1]):
        chain: list[Point] = []
        for p in ordered:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        corners += chain[:-1]
    return corners


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _cut(
    joints: tuple[Point, ...], radii: tuple[float, ...], length: float
) -> tuple[tuple[Point, ...], tuple[float, ...]]:
    """The first `length` bones of a limb (1.5: one and a half)."""
    length = min(length, len(joints) - 1)
    whole = min(int(length), len(joints) - 2)
    rest = length - whole
    end = _lerp(joints[whole], joints[whole + 1], rest)
    radius = radii[whole] + rest * (radii[whole + 1] - radii[whole])
    return (*joints[: whole + 1], end), (*radii[: whole + 1], radius)


def _is_far(body: _Body, side: str) -> bool:
    return body.view == "side" and side != body.near


def _outline(unit: float) -> float:
    return max(1.5, 0.014 * unit)


def _mid(a: Point, b: Point) -> Point:
    return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)


def _lerp(a: Point, b: Point, t: float) -> Point:
    return (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))


def _move(start: Point, direction: Point, distance: float) -> Point:
    return (start[0] + distance * direction[0], start[1] + distance * direction[1])


def _beyond(start: Point, end: Point, distance: float) -> Point:
    """The point `distance` px behind `end`, seen from `start`."""
    length = math.dist(start, end)
    return _lerp(start, end, 1 + distance / length) if length else end


# ---- colours ----


def _pick(rng: np.random.Generator, choices: tuple[Choice, ...]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _scale_color(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(factor * c)) for c in color)
    return red, green, blue


def _blend(a: Color, b: Color, t: float) -> Color:
    red, green, blue = (round(x + t * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _edge(color: Color, factor: float = 0.68) -> Color:
    return _scale_color(color, factor)


def _distinct_color(rng: np.random.Generator, others: tuple[Color, ...]) -> Color:
    """The one of four random clothes' colours that is farthest from all the others."""
    candidates = [
        _hsv(rng.uniform(), rng.uniform(0.1, 0.75), rng.uniform(0.20, 0.95)) for _ in range(4)
    ]
    return max(candidates, key=lambda c: min(math.dist(c, other) for other in others))
