"""Draws the life of a run from its table: python scripts/draw_run_states.py > docs/reference/run-states.svg

Where boxes stand is decided here, what leads where by the table: arrows that have no place here are lines in the boxes.
"""

from __future__ import annotations

import sys
from html import escape

from tiledbroker.supervisor._lifecycle import FINAL, TRANSITIONS, State

WIDTH, HEIGHT = 1000, 560
BOX_WIDTH, TITLE_HEIGHT, LINE_HEIGHT = 200, 30, 15

CENTRES = {
    State.STARTING: (120, 220),
    State.OPEN: (370, 220),
    State.CLOSING: (620, 220),
    State.PARKED: (370, 470),
    State.WRITTEN: (880, 110),
    State.INTERRUPTED: (880, 330),
    State.FAILED: (650, 470),
}

# How far the middle of each arrow lies beside the straight line, to the left of its direction.
ARROWS = {
    (State.STARTING, State.OPEN): 0,
    (State.OPEN, State.CLOSING): 0,
    (State.OPEN, State.STARTING): 120,
    (State.CLOSING, State.STARTING): 230,
    (State.CLOSING, State.WRITTEN): 0,
    (State.CLOSING, State.INTERRUPTED): 0,
    (State.STARTING, State.PARKED): 60,
    (State.PARKED, State.STARTING): 60,
    (State.OPEN, State.PARKED): 0,
    (State.CLOSING, State.PARKED): 0,
    (State.CLOSING, State.FAILED): 0,
}

STYLE = """
text { font: 12px sans-serif; fill: #222; text-anchor: middle }
.state { font-weight: bold; font-size: 14px }
.label { paint-order: stroke; stroke: #fff; stroke-width: 4px }
.box { fill: #eef3f8; stroke: #456; stroke-width: 1.2 }
.final { fill: #e8f3e8 }
.arrow { fill: none; stroke: #456; stroke-width: 1.2 }
"""


def draw() -> str:
    """The diagram as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The life of a run</title>",
        f"<style>{STYLE}</style>",
        (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto">'
            '<path d="M0,0 L10,5 L0,10 z" fill="#456"/></marker></defs>'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for (state, after), bend in ARROWS.items():
        events = [event.value for (before, event), to in TRANSITIONS.items() if (before, to) == (state, after)]
        if events:
            parts += arrow(state, after, bend, ", ".join(events))
    for state in State:
        parts += box(state)
    return "\n".join([*parts, "</svg>", ""])


def box(state: State) -> list[str]:
    """A state, with what happens to it that has no arrow."""
    x, y = CENTRES[state]
    lines = lines_of(state)
    height = TITLE_HEIGHT + LINE_HEIGHT * len(lines)
    style = "box final" if state in FINAL else "box"
    corner = f'x="{x - BOX_WIDTH / 2:g}" y="{y - height / 2:g}"'
    parts = [f'<rect class="{style}" {corner} width="{BOX_WIDTH}" height="{height}" rx="6"/>']
    top = y - height / 2 + 20
    parts.append(f'<text class="state" x="{x}" y="{top:g}">{state.value}</text>')
    for number, line in enumerate(lines, 1):
        parts.append(f'<text x="{x}" y="{top + LINE_HEIGHT * number:g}">{escape(line)}</text>')
    return parts


def lines_of(state: State) -> list[str]:
    """One line for each state that it goes to without an arrow, and for staying what it is."""
    lines: dict[State, list[str]] = {}
    for (before, event), after in TRANSITIONS.items():
        if before is state and (before, after) not in ARROWS:
            lines.setdefault(after, []).append(event.value)
    return [
        f"{event} \N{RIGHTWARDS ARROW} {'stays' if after is state else after.value}"
        for after, events in lines.items()
        for event in events
    ]


def arrow(state: State, after: State, bend: int, label: str) -> list[str]:
    """A curve from box to box, with its events in the middle."""
    (x1, y1), (x2, y2) = CENTRES[state], CENTRES[after]
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    control = ((x1 + x2) / 2 + bend * (y2 - y1) / length, (y1 + y2) / 2 - bend * (x2 - x1) / length)
    if (x2 - x1) * bend < 0 and y1 == y2:
        control = (control[0], y1 - abs(bend))
    start, end = edge(state, control), edge(after, control)
    middle = ((start[0] + 2 * control[0] + end[0]) / 4, (start[1] + 2 * control[1] + end[1]) / 4)
    curve = f"M{start[0]:.1f},{start[1]:.1f} Q{control[0]:.1f},{control[1]:.1f} {end[0]:.1f},{end[1]:.1f}"
    return [
        f'<path class="arrow" d="{curve}" marker-end="url(#head)"/>',
        f'<text class="label" x="{middle[0]:.1f}" y="{middle[1] - 4:.1f}">{escape(label)}</text>',
    ]


def edge(state: State, towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from a box's centre leaves the box."""
    x, y = CENTRES[state]
    dx, dy = towards[0] - x, towards[1] - y
    height = TITLE_HEIGHT + LINE_HEIGHT * len(lines_of(state))
    scale = min(BOX_WIDTH / 2 / abs(dx) if dx else 9e9, height / 2 / abs(dy) if dy else 9e9)
    return x + dx * scale, y + dy * scale


if __name__ == "__main__":
    sys.stdout.write(draw())
