"""Three kinds of plot, as plain SVG."""
import math
from xml.sax.saxutils import escape

COLOURS = {"direct": "#9aa0a6", "revdial": "#1f6feb", "revdial-two": "#79b0ff",
           "revdial-early": "#388bfd",
           "haproxy": "#d29922", "yamux": "#2da44e", "ssh": "#8250df", "frp": "#cf222e",
           "rathole": "#bf5700", "chisel": "#1b7c83"}
OTHER = "#57606a"
GRID = "#eaeef2"


def colour(name):
    return COLOURS.get(name, OTHER)


class Drawing:
    def __init__(self, width, height, title):
        self.width, self.height, self.parts = width, height, []
        self.text(16, 26, title, size=16)

    def text(self, x, y, words, size=12, anchor="start", fill="#1f2328"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
                          f'text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>')

    def box(self, x, y, width, height, fill):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
                          f'height="{height:.1f}" fill="{fill}"/>')

    def path(self, points, stroke, dashes=""):
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{where}" fill="none" stroke="{stroke}" '
                          f'stroke-width="2" stroke-dasharray="{dashes}"/>')

    def dot(self, x, y, fill):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"/>')

    def save(self, path):
        with open(path, "w") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                    f'height="{self.height}" font-family="sans-serif">\n'
                    f'<rect width="100%" height="100%" fill="#ffffff"/>\n')
            f.write("\n".join(self.parts) + "\n</svg>\n")


class Scale:
    """A logarithmic axis over whole decades."""

    def __init__(self, values, begin, end):
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self.begin, self.end = begin, end

    def at(self, value):
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self):
        return [10.0 ** k for k in range(self.low, self.high + 1)]


def bars(path, title, panels, number):
    """panels: (title, note, [(name, value)]), three in a row."""
    across, width, row = 3, 330, 18
    rows = max(len(values) for _, _, values in panels)
    height = 60 + rows * row
    d = Drawing(across * width + 20, 44 + -(-len(panels) // across) * height, title)
    for i, (name, note, values) in enumerate(panels):
        x, y = 16 + i % across * width, 60 + i // across * height
        d.text(x, y, name, size=13)
        d.text(x, y + 15, note, size=11, fill=OTHER)
        most = max(v for _, v in values) or 1
        for k, (peer, value) in enumerate(values):
            top = y + 22 + k * row
            d.text(x + 74, top + 11, peer, size=11, anchor="end")
            d.box(x + 80, top, 170 * value / most, row - 5, colour(peer))
            d.text(x + 86 + 170 * value / most, top + 11, number(value), size=11)
    d.save(path)


def ranges(path, title, rows):
    """rows: (name, (p50, p99) alone, (p50, p99) under load), microseconds."""
    d = Drawing(820, 90 + 44 * len(rows), title)
    scale = Scale([v for _, a, b in rows for v in (*a, *b)], 110, 780)
    bottom = 50 + 44 * len(rows)
    for tick in scale.ticks():
        d.path([(scale.at(tick), 44), (scale.at(tick), bottom)], GRID)
        words = f"{tick / 1000:g} ms" if tick >= 1000 else f"{tick:g} us"
        d.text(scale.at(tick), bottom + 18, words, size=11, anchor="middle")
    for i, (name, alone, loaded) in enumerate(rows):
        y = 66 + 44 * i
        d.text(100, y + 6, name, anchor="end")
        for (p50, p99), at, dashes in ((alone, y - 6, "2 3"), (loaded, y + 10, "")):
            d.path([(scale.at(p50), at), (scale.at(p99), at)], colour(name), dashes)
            d.dot(scale.at(p50), at, colour(name))
            d.dot(scale.at(p99), at, colour(name))
    d.text(16, bottom + 36, "dashed: alone; solid: under load", size=11, fill=OTHER)
    d.save(path)


def curves(path, title, lines, axes=("round trip, ms", "MB/s")):
    """lines: name to [(x, y)], both axes logarithmic."""
    d = Drawing(720, 430, title)
    points = [p for line in lines.values() for p in line]
    across = Scale([x for x, _ in points], 70, 520)
    up = Scale([y for _, y in points], 380, 66)
    for x in sorted({x for x, _ in points}):
        d.path([(across.at(x), 66), (across.at(x), 380)], GRID)
        d.text(across.at(x), 398, f"{x:g}", size=11, anchor="middle")
    d.text(295, 418, axes[0], anchor="middle")
    d.text(62, 48, axes[1], size=11, anchor="end")
    for tick in up.ticks():
        d.path([(70, up.at(tick)), (520, up.at(tick))], GRID)
        d.text(62, up.at(tick) + 4, f"{tick:g}", size=11, anchor="end")
    placed = []
    for name, line in sorted(lines.items(), key=lambda item: up.at(item[1][-1][1])):
        where = [(across.at(x), up.at(y)) for x, y in line]
        d.path(where, colour(name), "" if name in COLOURS else "4 4")
        for x, y in where:
            d.dot(x, y, colour(name))
        y = max([where[-1][1] + 4] + [p + 15 for p in placed])
        placed.append(y)
        d.text(where[-1][0] + 10, y, name, fill=colour(name))
    d.save(path)
