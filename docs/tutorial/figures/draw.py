"""Draws the figures of the tutorial, in both languages, from the experiments' own figures.

.venv/bin/python -m docs.tutorial.figures.draw
"""

from __future__ import annotations

from pathlib import Path

from client.relay.retry import RetryBudget
from docs.tutorial.code import goodput, policies, retries
from docs.tutorial.code.cost import SHAPES
from docs.tutorial.code.simulate import simulate
from docs.tutorial.code.timeline import LIMITS, ROWS
from docs.tutorial.figures.engine_room import (
    draft_gains,
    four_bits,
    programs,
    split_products,
    waiting_lines,
)
from docs.tutorial.figures.svg import Say, Svg, chart_of
from server.scheduling.policies import POLICIES

HERE = Path(__file__).resolve().parent


def roofline(say: Say) -> Svg:
    """Llama 3 8B on an H100: rates as measured in docs/performance-gpu.md."""
    bandwidth, peak, shape = 3.09e12, 780e12, SHAPES["8b"]
    chart = chart_of(
        say,
        ("Roofline of an H100 with an 8B model", "8B 模型在 H100 上的 roofline"),
        (("flop per byte moved", "每搬运一字节的浮点运算次数"), 0.3, 10000),
        (("flop/s", "flop/s"), 1e12, 2e15),
        "xy",
        height=360,
    )
    svg, ridge = chart.svg, peak / bandwidth
    chart.line([(0.33, 0.33 * bandwidth), (ridge, peak), (10000, peak)], "sa")
    for rows in (1, 16, 64, 256):
        flops, moved = shape.flops(rows, 1024), shape.traffic(rows, rows * 1024)
        x, y = chart.place(flops / moved, min(peak, flops / moved * bandwidth))
        svg.dot(x, y, "b")
        svg.text(x + 9, y + 12, say(f"decode, {rows} row{'s' * (rows > 1)}", f"解码，{rows} 行"), "small")
    for at, length in enumerate((512, 2048)):
        flops, moved = shape.flops(length, length // 2), shape.traffic(length, length)
        x, y = chart.place(flops / moved, peak)
        svg.dot(x, y, "c")
        svg.text(x - 4, y + 20 + 16 * at, say(f"prompt, {length}", f"提示词，{length}"), "small")
    x, y = chart.place(3, 1.6e13)
    svg.text(x - 95, y - 34, say("memory: 3.09 TB/s", "访存：3.09 TB/s"), "small a")
    x, y = chart.place(400, peak)
    svg.text(x, y - 8, say("arithmetic: 780 TFLOP/s", "算力：780 TFLOP/s"), "small a")
    return svg


def package(say: Say) -> Svg:
    """A static batch as a rectangle."""
    svg = Svg(640, 220, say("A package of four requests", "一个任务包中的四个请求"))
    prompts, answers, unit = [5, 9, 3, 7], [4, 30, 8, 12], 13.5
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        y = 40 + row * 32
        svg.text(12, y + 17, say(f"row {row}", f"第 {row} 行"), "small")
        svg.rect(64, y, (9 - prompt) * unit, 24, "waste")
        svg.rect(64 + (9 - prompt) * unit, y, prompt * unit - 1, 24, "a")
        svg.rect(64 + 9 * unit, y, answer * unit - 1, 24, "c")
        svg.rect(64 + (9 + answer) * unit, y, (30 - answer) * unit, 24, "waste")
    y = 196
    legend = (("a", say("prompt", "提示词")), ("c", say("tokens wanted", "需要的 token")))
    for at, (kind, text) in enumerate((*legend, ("waste", say("computed in vain", "无人需要的计算")))):
        svg.rect(64 + at * 170, y - 10, 12, 12, kind)
        svg.text(82 + at * 170, y, text, "small")
    svg.text(64, 26, say("time →", "时间 →"), "small faint")
    return svg


def lanes(say: Say) -> Svg:
    """The eight requests of `timeline`, in packages and step by step."""
    svg = Svg(640, 330, say("Packages and iteration-level scheduling", "任务包与迭代级调度"))
    unit = 10.4

    def draw(top: float, title: str, runs: list[tuple[int, int, int, int]]) -> None:
        svg.text(12, top, title, "bold")
        for lane, number, start, length in runs:
            y = top + 12 + lane * 28
            svg.rect(64 + start * unit, y, length * unit - 1.5, 22, "abcd"[number % 4] + " pale")
            svg.text(64 + (start + length / 2) * unit, y + 15, str(number), "small", "middle")
        for lane in range(ROWS):
            svg.text(12, top + 27 + lane * 28, say(f"row {lane}", f"第 {lane} 行"), "small")

    packages, begin = [], 0
    for first in range(0, len(LIMITS), ROWS):
        part = LIMITS[first : first + ROWS]
        packages += [(lane, first + lane, begin, limit) for lane, limit in enumerate(part)]
        for lane, limit in enumerate(part):
            svg.rect(
                64 + (begin + limit) * unit, 40 + lane * 28, (max(part) - limit) * unit - 1.5, 22, "waste"
            )
        begin += max(part)
    draw(28, say("packages of four: 50 steps", "每包四个：50 步"), packages)
    free, steps = [0] * ROWS, []
    for number, limit in enumerate(LIMITS):
        lane = free.index(min(free))
        steps.append((lane, number, free[lane], limit))
        free[lane] += limit
    draw(190, say(f"step by step: {max(free)} steps", f"逐步调度：{max(free)} 步"), steps)
    return svg


def blocks(say: Say) -> Svg:
    """Two sequences that share blocks; one is about to write."""
    svg = Svg(640, 270, say("Block tables and copy-on-write", "块表与写时复制"))
    pool = {0: "c", 2: "c", 3: "c", 5: "b", 6: "a"}
    svg.text(20, 150, say("pool", "块池"), "bold")
    for block in range(8):
        x = 90 + block * 66
        svg.rect(x, 130, 56, 34, pool.get(block, "waste"))
        svg.text(x + 28, 152, str(block), "on" if block in pool else "faint", "middle")
    tables = (
        (say("sample 0", "样本 0"), 40, (2, 0, 3, 5), 130),
        (say("sample 1", "样本 1"), 210, (2, 0, 3, 6), 164),
    )
    for name, y, table, edge in tables:
        svg.text(20, y + 20, name, "bold")
        for place, block in enumerate(table):
            x = 140 + place * 92
            svg.rect(x, y, 40, 28, "box")
            svg.text(x + 20, y + 19, str(block), "", "middle")
            side = y + 28 if y < 130 else y
            svg.line([(x + 20, side), (118 + block * 66, edge)], "line sf")
    svg.text(520, 58, say("own block", "独有的块"), "small b")
    svg.text(520, 228, say("copied when written", "写入时复制"), "small a")
    svg.text(470, 118, say("green: two references each", "绿色：引用计数均为 2"), "small c")
    return svg


def break_even(say: Say) -> Svg:
    """To swap or to compute again, over the length of a request."""
    chart = chart_of(
        say,
        ("Swap or recompute", "交换还是重新计算"),
        (("tokens of the request", "请求的 token 数"), 256, 131072),
        (("milliseconds", "毫秒"), 1, 30000),
        "xy",
        height=340,
    )
    svg, shape = chart.svg, SHAPES["8b"]
    lengths = [256 * 2**i for i in range(10)]
    compute = [(n, shape.flops(n, n // 2) / 300e12 * 1e3) for n in lengths]
    chart.line(compute, "sb")
    chart.label(5600, 185, say("recompute, 300 TFLOP/s", "重算，300 TFLOP/s"), "b")
    for link, kind in ((25e9, "sa"), (2e9, "sa dash")):
        chart.line([(n, 2 * n * shape.cache_bytes / link * 1e3) for n in lengths], kind)
        x, y = chart.place(9000, 2 * 9000 * shape.cache_bytes / link * 1e3)
        text = say(f"swap, {link / 1e9:g} GB/s", f"交换，{link / 1e9:g} GB/s")
        svg.text(x + (12 if link > 1e10 else -110), y + (16 if link > 1e10 else -14), text, "small a")
    return svg


def gumbel_bars(say: Say) -> Svg:
    """Scores, noise, and the largest sum."""
    from docs.tutorial.steps.step6_decoding import gumbel

    svg = Svg(640, 250, say("Gumbel-max sampling", "Gumbel-max 采样"))
    scores = [2.0, 1.4, 0.8, 0.3, -0.4, -1.0]
    for row, position in enumerate((7, 8)):
        noise = gumbel(3, 0, position, 6).tolist()
        sums = [a + b for a, b in zip(scores, noise, strict=True)]
        x0, base = 60 + row * 300, 200
        svg.text(x0, 24, say(f"position {position}", f"位置 {position}"), "bold")
        for token, (score, total) in enumerate(zip(scores, sums, strict=True)):
            x, low, high = x0 + token * 42, base - 28 * (score + 1.6), base - 28 * (total + 1.6)
            svg.rect(x, low, 14, base - low, "a")
            svg.rect(x + 16, high, 14, max(base - high, 1), "b" if total == max(sums) else "waste")
            svg.text(x + 15, base + 16, str(token), "small", "middle")
    for at, (kind, text) in enumerate((
        ("a", say("score / temperature", "分数 / 温度")), ("waste", say("plus noise", "加上噪声")),
        ("b", say("the largest: chosen", "最大者被选中")),
    )):  # fmt: skip
        svg.rect(60 + at * 180, 230, 12, 12, kind)
        svg.text(78 + at * 180, 241, text, "small")
    return svg


def storm(say: Say) -> Svg:
    """Attempts a second in an overload, with and without a budget."""
    plain, bounded = retries.simulate(retries.Endless(), 61), retries.simulate(RetryBudget(), 61)
    chart = chart_of(
        say,
        ("A retry storm", "重试风暴"),
        (("second", "秒"), 0, 60),
        (("attempts a second", "每秒尝试次数"), 0, 2200),
    )
    chart.line([(i, attempts) for i, (_, attempts, _) in enumerate(plain)], "sb")
    chart.line([(i, attempts) for i, (_, attempts, _) in enumerate(bounded)], "sa")
    chart.line([(i, new) for i, (new, _, _) in enumerate(plain)], "sf dash")
    chart.label(41, 1680, say("every refusal is retried", "每次拒绝都重试"), "b")
    chart.label(24, 180, say("with a retry budget", "使用重试预算"), "a")
    return chart.svg


def goodput_lines(say: Say) -> Svg:
    """Throughput goes on rising where goodput falls."""
    objective, points = goodput.parse_objective("ttft=1,tpot=0.02"), []
    for rate in range(2, 27, 2):
        records, _ = simulate(POLICIES["first_come"], goodput.poisson(rate, 400, seed=rate))
        figures = goodput.summarise(records, objective)
        points.append((rate, figures.requests_per_second, figures.goodput_requests))
    chart = chart_of(
        say,
        ("Throughput and goodput", "吞吐量与有效吞吐量"),
        (("arrivals a second", "每秒到达的请求"), 0, 26),
        (("requests a second", "每秒请求数"), 0, 20),
    )
    chart.line([(0, 0), (20, 20)], "sf dash")
    chart.line([(rate, all_) for rate, all_, _ in points], "sa")
    chart.line([(rate, good) for rate, _, good in points], "sb")
    chart.label(20.5, 14.4, say("answered", "全部完成"), "a")
    chart.label(20.5, 7, say("within the objective", "达到目标的"), "b")
    return chart.svg


def policy_places(say: Say) -> Svg:
    """What each policy trades: the wait for the first token against gaps between the others."""
    chart = chart_of(
        say,
        ("Four policies, one traffic", "四种策略，同一流量"),
        (("time to first token, p50, s", "首 token 延迟 p50（秒）"), 0, 4),
        (("gap p99, ms", "token 间隔 p99（毫秒）"), 0, 250),
    )
    for kind, (name, policy) in zip("abcd", POLICIES.items(), strict=True):
        figures, gap = policies.measure(policy, policies.work("documents", 25.0, 400))
        x, y = chart.place(figures.ttft["p50"], gap * 1e3)
        chart.svg.dot(x, y, kind, 6)
        chart.svg.text(x + 10, y - 8, name, f"small {kind}")
    return chart.svg


FIGURES = {
    "01-roofline": roofline,
    "02-package": package,
    "03-lanes": lanes,
    "04-blocks": blocks,
    "05-break-even": break_even,
    "06-gumbel": gumbel_bars,
    "07-programs": programs,
    "08-four-bits": four_bits,
    "09-drafts": draft_gains,
    "10-split": split_products,
    "11-storm": storm,
    "12-waiting": waiting_lines,
    "13-goodput": goodput_lines,
    "14-policies": policy_places,
}


def drawn() -> dict[Path, str]:
    """Every file and its content."""
    says: dict[str, Say] = {"en": lambda en, zh: en, "zh": lambda en, zh: zh}
    return {
        HERE / f"{name}.{language}.svg": str(draw(say))
        for name, draw in FIGURES.items()
        for language, say in says.items()
    }


if __name__ == "__main__":
    for path, content in drawn().items():
        path.write_text(content, encoding="utf-8")
