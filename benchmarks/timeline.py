"""Simulates the pipeline of a model that sleeps: idle time, and units that stages must keep.

A step is W - 1 windows of context with N passes each, then one that is scored. A forward takes 1 on
every stage, a backward 2. Nothing is computed; `parallel.simulator` runs what `parallel.schedule`
gives.

    python -m benchmarks.timeline                            # a Markdown table, a few seconds
    python -m benchmarks.timeline --svg docs/timeline.svg    # and one step as a picture
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.command import described
from parallel.passes import Pass
from parallel.schedule import make_schedule
from parallel.simulator import Span, Timeline, simulate

# (W, N, every how many windows backpropagation is cut; 0: never) of the table: no sleep, one window
# that is slept over, three
STORIES = [(4, 1, 0), (2, 2, 0), (2, 4, 0), (2, 8, 0), (4, 4, 0), (4, 4, 2)]
# by microbatch: forward, backward; light enough for black and dark enough for white letters
COLOURS = [
    ("#b5d3f0", "#1f5d9c"), ("#fbd4a4", "#a4560b"), ("#bfe3bf", "#2b742f"), ("#d9c9ef", "#6a4fb3"),
]  # fmt: skip
LANE, TICK, LEFT, TOP = 34, 22, 84, 92  # pixels


def story(P: int, W: int, N: int, cut: int = 0) -> tuple[Pass, ...]:
    """The passes of one microbatch.

    Args:
        cut: backpropagation is cut every so many windows, and every window is scored; 0: never.
    """
    passes, end = [], W - 1
    for w in range(W):
        last = N if w < end else 1
        segment = end - (end - w) // cut * cut if cut else end
        for number in range(1, last + 1):
            # sleep over a segment's last window has no gradient: only later segments read it
            has_grad = number == 1 or w < segment
            passes.append(
                Pass(
                    window=w,
                    number=number,
                    first_stage=0,
                    core_end=P - 1,
                    last_stage=P - 1,
                    loops=number < last,
                    core_grad_until=P - 1 if has_grad else -1,
                    head_has_grad=number == 1 and (cut > 0 or w == end),
                    sends_grad_to_previous_pass=number > 1 and has_grad,
                    segment=segment,
                )
            )
    return tuple(passes)


def step(P: int, M: int, W: int, N: int, cut: int = 0) -> Timeline:
    """One training step."""
    passes = [story(P, W, N, cut)] * M
    return simulate(make_schedule(passes, P), passes, P)


def table() -> Iterator[str]:
    """Markdown, line by line."""
    columns = (
        "stages P", "microbatches M", "windows W", "passes N", "truncated every", "idle",
        "idle at least", "peak units", "units of P microbatches",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for P in (2, 4, 8):
        for W, N, cut in STORIES:
            passes = story(P, W, N, cut)
            kept = sum(p.has_backward(0) for p in passes)
            for M in (P, 4 * P):
                timeline, work = step(P, M, W, N, cut), M * (len(passes) + 2 * kept)
                filling = 3 * (P - 1) / (3 * (P - 1) + work)  # and draining the pipeline once
                yield (
                    f"| {P} | {M} | {W} | {N} | {f'{cut} windows' if cut else ''} "
                    f"| {timeline.bubble:.1%} "
                    f"| {filling:.1%} | {max(timeline.peak)} | {P * kept} |"
                )


def svg(P: int, M: int, W: int, N: int) -> Iterator[str]:
    """The timeline of one step, line by line: a lane for each stage, a box for each action."""
    timeline = step(P, M, W, N)
    long = TICK * int(timeline.makespan)
    width, axis = LEFT + long + 24, TOP + LANE * P
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {axis + 58}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">'
    )
    title = (
        f"One step of {M} microbatches on {P} stages: window 0 takes {N} passes, then window "
        f"{W - 1} is predicted"
    )
    yield f"  <title>{title}</title>"
    yield f'  <rect width="{width}" height="{axis + 58}" fill="#fff"/>'
    yield f'  <text x="{LEFT}" y="30" font-size="18" font-weight="bold" fill="#222">{title}</text>'
    yield from _legend(M)
    for s, spans in enumerate(timeline.spans):
        y = TOP + LANE * s
        yield f'  <rect x="{LEFT}" y="{y + 2}" width="{long}" height="{LANE - 4}" fill="#f1f1f1"/>'
        at = f'x="{LEFT - 10}" y="{y + LANE / 2 + 5:g}"'
        yield f'  <text {at} text-anchor="end" fill="#222">stage {s}</text>'
        yield '  <g font-size="10.5" text-anchor="middle">'
        for span in spans:
            p = story(P, W, N)[span.action.unit]
            yield from _box(span, y, f"{p.window}.{p.number}")
        yield "  </g>"
    yield f'  <path d="M{LEFT} {axis + 4}h{long}" stroke="#555"/>'
    yield '  <g text-anchor="middle" fill="#444">'
    for t in range(0, int(timeline.makespan) + 1, 5):
        x = LEFT + TICK * t
        text = f'<text x="{x}" y="{axis + 25}">{t}</text>'
        yield f'    <path d="M{x} {axis + 4}v6" stroke="#555"/>{text}'
    yield f'    <text x="{LEFT + long // 2}" y="{axis + 46}">time, in forwards of one stage</text>'
    yield "  </g>"
    yield "</svg>"


def _box(span: Span, y: int, label: str) -> Iterator[str]:
    light, dark = COLOURS[span.action.microbatch % len(COLOURS)]
    fill, letters = (dark, "#fff") if span.action.backward else (light, "#111")
    x, width = LEFT + TICK * span.begin, TICK * (span.end - span.begin)
    yield (
        f'    <rect x="{x + 0.5:g}" y="{y + 2}" width="{width - 1:g}" height="{LANE - 4}" '
        f'rx="2" fill="{fill}"/>'
        f'<text x="{x + width / 2:g}" y="{y + LANE / 2 + 4:g}" fill="{letters}">{label}</text>'
    )


def _legend(M: int) -> Iterator[str]:
    yield '  <g fill="#222">'
    x = LEFT
    for m in range(M):
        for colour in COLOURS[m % len(COLOURS)]:
            yield f'    <rect x="{x}" y="52" width="18" height="18" rx="2" fill="{colour}"/>'
            x += 18
        yield f'    <text x="{x + 8}" y="66">microbatch {m}</text>'
        x += 112
    legend = "light: forward, dark: backward; 0.3: window 0, pass 3; grey: idle"
    yield f'    <text x="{x + 6}" y="66">{legend}</text>'
    yield "  </g>"


def main() -> None:
    """Prints the table, and draws the picture if asked to."""
    parser = described(__doc__)
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="also draw a step of P = 4, M = 4, W = 2, N = 3"
    )
    args = parser.parse_args()
    for line in table():
        print(line)
    if args.svg:
        args.svg.write_text("\n".join(svg(4, 4, 2, 3)) + "\n")


if __name__ == "__main__":
    main()
