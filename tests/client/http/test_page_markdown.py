"""What a model writes, in the page: Markdown is rendered, and nothing of it runs."""

from __future__ import annotations

from tests.client.conftest import MakeGateway
from tests.client.http.browser import Browser, needs_chromium
from tests.client.stub import Stub, stubs

pytestmark = needs_chromium

INJECTIONS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload='window.hacked = 1'>",
    "<svg><script>window.hacked = 1</script></svg>",
    "<iframe src='javascript:parent.hacked = 1'></iframe>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "<body onload='window.hacked = 1'>",
    "<details open ontoggle='window.hacked = 1'>",
    "<video><source onerror='window.hacked = 1'></video>",
    "<math><mtext><table><mglyph><style><img src=x onerror='window.hacked = 1'>",
    "<style>body { display: none }</style>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0; url=https://evil.example'>",
    "<base href='https://evil.example/'>",
    "<form action=https://evil.example><input name=q autofocus onfocus='window.hacked = 1'></form>",
    "<object data='javascript:window.hacked = 1'></object>",
    "<a href='javascript:window.hacked = 1'>click</a>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:window.hacked=1)",
    "[click](data:text/html,<script>window.hacked=1</script>)",
    "[click](vbscript:hacked)",
    "[click](  javascript:window.hacked=1)",
    "![x](https://evil.example/seen.png)",
    "![x](javascript:window.hacked=1)",
    "[![x](https://evil.example/seen.png)](https://evil.example)",
    "[x](https://evil.example' onclick='window.hacked=1)",
    '[x](https://evil.example"onclick="window.hacked=1)',
    "`<script>window.hacked = 1</script>`",
    "```\n<script>window.hacked = 1</script>\n```",
    '```"><script>window.hacked=1</script>\ncode\n```',
    "| <img src=x onerror=window.hacked=1> | b |\n|---|---|\n| <script>window.hacked=1</script> | c |",
    "# <img src=x onerror='window.hacked = 1'>",
    "&lt;script&gt;window.hacked = 1&lt;/script&gt;",
    "**<b onmouseover='window.hacked = 1'>bold</b>**",
    "{{constructor.constructor('window.hacked = 1')()}}",
    "\u202e<script>window.hacked = 1</script>\u0000",
]
ALLOWED = {
    *("P", "H3", "H4", "H5", "H6", "PRE", "CODE", "UL", "OL", "LI", "BLOCKQUOTE", "HR"),
    *("TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "STRONG", "EM", "A"),
}


async def test_what_a_model_writes_stays_text(make_gateway: MakeGateway, browser: Browser) -> None:
    """Thirty-six ways to get in, each rendered in the page and shown as an answer."""
    server = Stub(padding="\n\n" + "\n\n".join(INJECTIONS) + "\n\n")
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.script("document.getElementById('max-tokens').value = 2")
        await browser.ask("hello")
        await browser.until("#turns > li:last-child .foot", bool)
        found = await browser.script(
            """const all = [...document.querySelectorAll("#turns > li:last-child .body *")];
            return {
              names: [...new Set(all.map((each) => each.tagName))],
              attributes: [...new Set(all.flatMap((each) => each.getAttributeNames()))],
              links: all.filter((each) => each.href).map((each) => each.href),
              shown: document.querySelector("#turns > li:last-child .body").textContent,
            };"""
        )
        assert set(found["names"]) <= ALLOWED
        assert set(found["attributes"]) <= {"href", "title", "target", "rel", "tabindex", "data-language"}
        assert all(link.startswith("https://evil.example") for link in found["links"])
        assert found["shown"].count("window.hacked") >= 2 * 20
        await browser.script("document.querySelectorAll('.body a').forEach((each) => (each.target = ''))")
        assert await browser.script("return window.hacked === undefined && document.body.offsetHeight > 0")
        assert browser.hosts() == {client.url[7:]}
        assert browser.errors() == []


async def test_markdown_is_rendered(make_gateway: MakeGateway, browser: Browser) -> None:
    text = (
        "# Title\n\nSome *slanted*, **bold** text with `code` and [a link](https://example.com/a_b).\n\n"
        "- one\n- two\n\n3. three\n4. four\n\n> said\n\n```python\nif a < b:\n    pass\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n2 * 3 * 4 and snake_case_name"
    )
    expected = (
        "<h3>Title</h3><p>Some <em>slanted</em>, <strong>bold</strong> text with <code>code</code> and "
        '<a href="https://example.com/a_b" title="https://example.com/a_b" target="_blank" '
        'rel="noopener noreferrer nofollow">a link</a>.</p><ul><li>one</li><li>two</li></ul>'
        '<ol start="3"><li>three</li><li>four</li></ol><blockquote>said</blockquote>'
        '<pre data-language="python" tabindex="0"><code>if a &lt; b:\n    pass</code></pre>'
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"
        "<p>2 * 3 * 4 and snake_case_name</p>"
    )
    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        render = (
            "const done = arguments[1]; import('/page/markdown.js').then(({ markdown }) => "
            "{ const box = document.createElement('div'); box.append(markdown(arguments[0])); "
            "done(box.innerHTML); })"
        )
        assert await browser.script_with(render, text) == expected
        assert len(await browser.script_with(render, "**a" * 50_000)) > 100_000  # and it ends
