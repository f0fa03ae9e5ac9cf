"""The reference is that of today's schemas, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import Field

import start_app
from docs.reference import tables
from docs.reference.__main__ import pages
from protocol import routes
from server.continuous_batching.config import ServerConfig
from utils.options import (
    AppOptions,
    CbServerAppOptions,
    ClientAppOptions,
    SbServerAppOptions,
    VllmAppOptions,
)

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
ENGLISH = sorted((REFERENCE / "en").glob("*.md"))
LANGUAGES = ("en", "zh")


def test_the_pages_are_up_to_date() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run .venv/bin/python -m docs.reference"


def test_a_changed_schema_makes_a_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithOneMore(ServerConfig):
        one_more: int = Field(3, description="a key that is new")

    monkeypatch.setitem(tables.MODELS, "cb_server_config.json", WithOneMore)
    changed = [path.name for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert changed == ["configuration.md"] * 2
    assert (
        "| `one_more` | integer | `3` | a key that is new |" in pages()[REFERENCE / "en" / "configuration.md"]
    )


def test_a_key_that_nothing_explains_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"no entry 'nothing' under 'client_config\.json'"):
        tables.note("client_config.json", "nothing", "en", lambda: None)


def test_a_docstring_explains_where_there_is_no_note() -> None:
    assert tables.docstring(ServerConfig, "model_aliases") == "Further names under which the model is served."


def test_notes_are_of_keys_that_there_are_in_both_languages() -> None:
    known = {name: set(_keys(model)) for name, model in tables.MODELS.items()}
    known["start_app.py"] = set(re.findall(r"--(\w+)", start_app.build_parser().format_help()))
    known["shared"] = {
        key for keys in known.values() for name in keys for key in (name, name.rpartition(".")[2])
    }
    for section, entries in tables.notes().items():
        assert entries.keys() - known[section] == set(), section
        for key, told in entries.items():
            assert all(told.get(language) for language in LANGUAGES), f"{section}: {key}"


def _keys(model: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        found.append(prefix + (field.alias or name))
        for inner in tables._models_in(field.annotation):
            found += _keys(inner, f"{name}.")
    return found


@pytest.mark.parametrize("english", ENGLISH, ids=lambda path: path.stem)
def test_both_languages_have_the_same_shape(english: Path) -> None:
    texts = [(REFERENCE / language / english.name).read_text(encoding="utf-8") for language in LANGUAGES]
    for pattern in (r"^(#+) ", r"^```.*?^```", r"^\| (?:· )?(`[^|]*`)(?:（[^|]*）| \([^|]*\))? \|"):
        found = [re.findall(pattern, text, re.M | re.S if "```" in pattern else re.M) for text in texts]
        assert found[0] == found[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_route_is_told(language: str) -> None:
    text = (REFERENCE / language / "routes.md").read_text(encoding="utf-8")
    told = set(re.findall(r"(?:GET|POST|DELETE) (/[\w/]*\w)", text))
    paths = {value for name, value in vars(routes).items() if name.isupper() and isinstance(value, str)}
    assert paths - told == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_option_of_the_apps_is_told(language: str) -> None:
    text = (REFERENCE / language / "command-line.md").read_text(encoding="utf-8")
    kinds: tuple[type[AppOptions], ...] = (
        ClientAppOptions,
        CbServerAppOptions,
        SbServerAppOptions,
        VllmAppOptions,
    )
    options = {f"--{name}" for kind in kinds for name in kind.model_fields}
    options |= set(re.findall(r"(--\w+)", start_app.build_parser().format_help())) - {"--help"}
    assert [option for option in sorted(options) if f"`{option}`" not in text] == []
