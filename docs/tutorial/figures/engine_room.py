"""The figures of chapters 7 to 10 and 12."""

from __future__ import annotations

from docs.tutorial.code import capacity
from docs.tutorial.figures.svg import Say, Svg, chart_of


def programs(say: Say) -> Svg:
    """Contexts of unequal length on six processors: whole, and in pieces, the longest first."""
    svg = Svg(
        640, 330, say("Attention of nine contexts on six processors", "九个上下文的注意力在六个处理器上")
    )
    lengths, unit = [2, 3, 2, 4, 1, 3, 2, 12, 5], 30
    pieces = sorted(
        (length / n for length in lengths for n in [-(-length // 3)] for _ in range(n)), reverse=True
    )
    names = say("whole contexts", "整个上下文"), say("pieces, longest first", "分段，最长者先行")
    for panel, (name, works) in enumerate(zip(names, (lengths, pieces), strict=True)):
        top = 34 + panel * 150
        svg.text(12, top - 10, name, "small bold")
        free = [0.0] * 6
        for work in works:
            lane = free.index(min(free))
            svg.rect(12 + free[lane] * unit, top + lane * 18, work * unit - 2, 15, "a" if work < 12 else "b")
            free[lane] += work
        end = 12 + max(free) * unit
        for lane, busy in enumerate(free):
            svg.rect(12 + busy * unit, top + lane * 18, end - 12 - busy * unit, 15, "waste")
    return svg


def four_bits(say: Say) -> Svg:
    """What 4 bits gain by rows, as docs/performance-cpu.md and docs/performance-gpu.md have it."""
    chart = chart_of(
        say,
        ("Speed of 4-bit weights", "4 位权重的速度"),
        (("rows in the step", "一步中的行数"), 1, 256),
        (("times as fast as bfloat16", "相对于 bfloat16 的倍数"), 0.5, 2.5),
        "x",
    )
    chart.line([(1, 1), (256, 1)], "sf dash")
    chart.line([(1, 1.91), (2, 1.51), (4, 1.55), (8, 1.55), (16, 1.50), (32, 1.25)], "sb")
    chart.line([(1, 1.88), (16, 2.0), (256, 0.96)], "sa")
    chart.label(18, 2.06, "H100, 8B", "a")
    chart.label(2.4, 1.42, say("two CPU cores, 500M", "两个 CPU 核，500M"), "b")
    return chart.svg


def draft_gains(say: Say) -> Svg:
    """Tokens of a step by the share of drafted tokens that are right: (1 - a^(k+1)) / (1 - a)."""
    chart = chart_of(
        say,
        ("Tokens of a step with drafts", "带草稿的一步得到的 token 数"),
        (("probability that a drafted token is right", "草稿 token 正确的概率"), 0, 1),
        (("tokens a step", "每步 token 数"), 0, 10),
    )
    for kind, most in zip("cba", (2, 4, 8), strict=True):
        rates = [i / 50 for i in range(50)]
        chart.line([(a, (1 - a ** (most + 1)) / (1 - a)) for a in rates], f"s{kind}")
        x, y = chart.place(0.98, (1 - 0.98 ** (most + 1)) / 0.02)
        name = say(f"drafts of {most}", f"{most} 个草稿")
        chart.svg.text(x - 6, y + (26 if most < 8 else -8), name, f"small {kind}", "end")
    return chart.svg


def split_products(say: Say) -> Svg:
    """Two products of a layer on two ranks: the first split by its outputs, the last by its inputs."""
    svg = Svg(640, 280, say("Two products on two ranks", "两个 rank 上的两次矩阵乘法"))
    for at, (kind, name) in enumerate((("a", "rank 0"), ("b", "rank 1"))):
        svg.rect(24 + at * 90, 18, 12, 12, kind)
        svg.text(42 + at * 90, 29, name, "small")
        svg.rect(90, 62 + at * 86, 110, 84, kind)  # the first product: [outputs, inputs]
        svg.rect(236, 62 + at * 86, 18, 84, kind)  # between the products
        svg.rect(292 + at * 90, 93, 88, 108, kind)  # the last product
        svg.rect(508 + at * 46, 93, 18, 108, f"{kind} pale")  # its part of each sum
    svg.rect(36, 93, 18, 108, "waste")
    svg.rect(602, 93, 18, 108, "c")
    for x, sign in ((66, "→"), (212, "="), (266, "→"), (486, "="), (535, "+"), (582, "=")):
        svg.text(x, 152, sign)
    for x, y, text in (
        (45, 84, say("x, on both", "x，两边都有")),
        (145, 52, say("split by outputs", "按输出拆分")),
        (245, 250, say("whole heads", "完整的头")),
        (381, 222, say("split by inputs", "按输入拆分")),
        (563, 222, say("one sum", "一次求和")),
    ):
        svg.text(x, y, text, "small", "middle")
    return svg


def waiting_lines(say: Say) -> Svg:
    """The mean wait for a slot against utilisation, as `capacity.py` computes it."""
    chart = chart_of(
        say,
        ("Waiting for a slot", "等待空闲槽位"),
        (("utilisation, %", "利用率（%）"), 50, 100),
        (("mean wait, requests' lengths", "平均等待（以请求时长为单位）"), 0, 2),
    )
    for kind, servers, at in zip("bac", (1, 4, 16), (0.9, 0.93, 0.84), strict=True):
        loads = [0.5 + 0.01 * i for i in range(48)]
        points = [(100 * load, capacity.waits(servers, 8, load)) for load in loads]
        chart.line([(x, y) for x, y in points if y <= 2], f"s{kind}")
        x, y = chart.place(100 * at, min(2, capacity.waits(servers, 8, at)))
        name = say(f"{servers} × 8 slots", f"{servers} × 8 个槽位")
        chart.svg.text(x - 8, y - 6, name, f"small {kind}", "end")
    return chart.svg
