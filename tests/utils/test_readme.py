"""The READMEs tell of every configuration key and option, and with the right default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import start_app
from client.config import GatewayConfig, OpenAIJumperConfig
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from utils.config import _models_in
from utils.options import CONFIGS

ROOT = CONFIGS.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
FILES = {
    "client_config.json": GatewayConfig,
    "cb_server_config.json": CbServerConfig,
    "sb_server_config.json": SbServerConfig,
}
REQUIRED = {"required", "必填"}


def table_of(readme: Path, file: str) -> dict[str, str]:
    """Key → default of the table for a configuration file, nested keys in sections."""
    text = readme.read_text(encoding="utf-8")
    block = text[text.index(f"<summary><b>{file}</b>") :]
    rows, section = {}, ""
    for line in block[: block.index("</details>")].splitlines():
        if not (line.startswith(("| `", "| · `"))):
            continue
        keys, default = (cell.strip() for cell in line.split("|")[1:3])
        if not keys.startswith("·"):
            section = ""
        for key in re.findall(r"`(\w+)`", keys):
            rows[section + key] = default.replace("`", "")
        if not default and not keys.startswith("·"):
            section = re.findall(r"`(\w+)`", keys)[0] + "."
    return rows


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Key → default of a configuration; sections have no default of their own."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = next(_models_in(field.annotation), None)
        if section is None or section is OpenAIJumperConfig:
            keys[prefix + name] = REQUIRED if field.is_required() else field.default
        else:
            keys |= {prefix + name: ""} | keys_of(section, f"{name}.")
    return keys


def shown(default: Any) -> str:
    """A default as the table shows it."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if default == ():
        return "[]"
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
@pytest.mark.parametrize("file", FILES)
def test_every_configuration_key_is_told_with_its_default(readme: Path, file: str) -> None:
    told, real = table_of(readme, file), keys_of(FILES[file])
    assert list(told) == list(real)
    for key, default in real.items():
        assert told[key] in default if default is REQUIRED else told[key] == shown(default), key


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_option_of_start_app_is_told(readme: Path) -> None:
    options = re.findall(r"(--\w+)", start_app.build_parser().format_help())
    text = readme.read_text(encoding="utf-8")
    assert [option for option in options if f"`{option}`" not in text and option != "--help"] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    engine = ROOT / "server" / "continuous_batching"
    places = [
        ROOT,
        engine,
        *(path for path in engine.iterdir() if path.is_dir()),
        ROOT / "server/static_batching",
    ]
    named = set(re.findall(r"`([\w/]+\.(?:py|txt|json))`", text)) | set(re.findall(r"\]\(([\w/.-]+)\)", text))
    generated = {"client_config.json", "cb_server_config.json", "sb_server_config.json", "config.json"}
    missing = [name for name in named - generated if not any((place / name).exists() for place in places)]
    assert missing == []


def test_both_readmes_show_the_same_commands_and_answers() -> None:
    blocks = [re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), re.S) for path in READMES]
    english, chinese = ([re.sub(r"#.*", "", block) for block in found] for found in blocks)
    assert english == chinese
