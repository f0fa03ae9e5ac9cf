"""Configuration files: what loads, and that each mistake is one clear line."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from client.config import GatewayConfig
from utils.config import (
    ConfigError,
    ConfigModel,
    ModelPath,
    Secret,
    TokenizerPath,
    load_config,
    read_file,
)

TEMPLATES = Path(__file__).parent / "templates"


class Account(ConfigModel):
    api_key: Secret
    org_id: str | None = None


class Batcher(ConfigModel):
    max_tokens: int = Field(gt=0)
    interval_seconds: float = 2.0
    fast: bool = False


class Example(ConfigModel):
    batcher_config: Batcher
    accounts: list[Account] = Field([])
    model_path: ModelPath | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.json"
    path.write_text(text, encoding="utf-8")
    return path


def message(tmp_path: Path, text: str) -> str:
    """The error for `text`, without the directory."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Example)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    return line.removeprefix(f"{tmp_path}/")


def test_the_client_template_loads_as_it_was_handed_out() -> None:
    config = load_config(TEMPLATES / "client_config.json", GatewayConfig)
    assert list(config.continuous_batching_server_urls) == ["http://127.0.0.1:8001"]
    assert config.openai_jumper_configs[0].api_key.get_secret_value() == "YOUR_OPENAI_KEY"
    assert config.openai_jumper_configs[0].org_id is None
    assert config.heart_beat_interval_seconds == 600


def test_plain_json_reads_as_the_json_module_reads_it(tmp_path: Path) -> None:
    text = json.dumps({"a": [1, -2.5, 1e-7, True, None, "é\n\"#, 'x"], "b:": {"": []}, "n": "null"}, indent=1)
    assert read_file(write(tmp_path, text)) == json.loads(text)


@settings(deadline=None)  # a slow disk is no failure
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["C"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(categories=["L"])), inner),
    )
)
def test_any_json_document_reads_as_the_json_module_reads_it(value: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "any.json"
        for indent, ascii_only in itertools.product((None, 2, "\t"), (True, False)):
            path.write_text(json.dumps([value], indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
            assert read_file(path) == [value]


def test_values_are_coerced_where_the_meaning_is_plain(tmp_path: Path) -> None:
    text = '{"batcher_config": {"max_tokens": "16", "interval_seconds": 3, "fast": "true"}}'
    batcher = load_config(write(tmp_path, text), Example).batcher_config
    assert (batcher.max_tokens, batcher.interval_seconds, batcher.fast) == (16, 3.0, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{\n  "batcher_config": {\n    "max_tokns": 16 # few\n  }\n}',
            "example.json:3: unknown key 'batcher_config.max_tokns'; did you mean 'max_tokens'? "
            "accepted: max_tokens, interval_seconds, fast",
        ),
        (
            '{\n  "batcher_config": {\n    "max_tokens": 16,\n    "intervall_seconds": 1\n  }\n}',
            "example.json:4: unknown key 'batcher_config.intervall_seconds'; did you mean "
            "'interval_seconds'? accepted: max_tokens, interval_seconds, fast",
        ),
        (
            '{"batcher_config": {"max_tokens": 1}, "xyz": 1}',
            "example.json:1: unknown key 'xyz'; accepted: batcher_config, accounts, model_path",
        ),
        (
            '{\n"batcher_config": {\n"max_tokens": "many"}}',
            'example.json:3: batcher_config.max_tokens: found "many", accepted: a valid integer, '
            "unable to parse string as an integer",
        ),
        (
            '{"batcher_config": {"max_tokens": 0}}',
            "example.json:1: batcher_config.max_tokens: found 0, accepted: greater than 0",
        ),
        (
            '{"batcher_config": {"max_tokens": true}}',
            "example.json:1: batcher_config.max_tokens: found true, accepted: a number",
        ),
        (
            '{"batcher_config": {"max_tokens": 1, "interval_seconds": false}}',
            "example.json:1: batcher_config.interval_seconds: found false, accepted: a number",
        ),
        (
            '{\n"batcher_config": {}}',
            "example.json:2: key 'batcher_config.max_tokens' is missing",
        ),
        (
            '{"batcher_config": null}',
            "example.json:1: batcher_config: found null, accepted: an object",
        ),
        (
            '{"batcher_config": {"max_tokens": 1},\n "accounts": {}}',
            "example.json:2: accounts: found an object, accepted: a list",
        ),
        (
            '{"batcher_config": {\n"max_tokens": 1,\n"max_tokens": 2}}',
            "example.json:3: duplicate key 'batcher_config.max_tokens' (first on line 2)",
        ),
        ("", "example.json:1: the file: found null, accepted: an object"),
        ('{"batcher_config": {\n', "example.json:2: not valid JSON: "),
        ('{"batcher_config": {"max_tokens": 1}\n "accounts": []}', "example.json:2: not valid JSON: "),
        ('{"batcher_config": !!python/object:os.system {}}', "example.json:1: not valid JSON: "),
        ('{\n"batcher_config": ,}', "example.json:2: not valid JSON: a value is missing"),
        ('{\n// a note\n"batcher_config": {}}', "example.json:2: not valid JSON: a comment begins with '#'"),
        ('{"batcher_config": {}, // a\n"x": 1}', "example.json:1: not valid JSON: a comment begins with '#'"),
        ('{"a": "http://b/c",\n"d": }}', "example.json:2: not valid JSON: "),
        ('{"batcher_config":\n&a [*a]}', "example.json:2: not valid JSON: anchor 'a'"),
        ('{"batcher_config": *a}', "example.json:1: not valid JSON: anchor 'a'"),
        ('{"batcher_config": ' + 3000 * "[", "example.json: not valid JSON: nested too deeply"),
        ('{"\\ud800": 1}', "example.json:1: not valid JSON: half of a surrogate pair"),
        ('{"batcher_config": "\x00"}', "example.json: not valid JSON: unacceptable character"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_and_what_is_accepted(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert message(tmp_path, text).startswith(expected)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read: No such file"):
        load_config(tmp_path / "nothing.json", Example)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, Example)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin\.json: not UTF-8 text \(byte 7\)"):
        load_config(tmp_path / "latin.json", Example)


def model_in(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_in(tmp_path / "model")
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "example.json"
    path.write_text('{"batcher_config": {"max_tokens": 1}, "model_path": "../model"}')
    monkeypatch.chdir("/")
    assert load_config(path, Example).model_path == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("./modle", "does not exist"),
        ("~nobody-of-that-name/model", "does not exist"),
        ("example.json", "is not a directory"),
        ("empty", "holds no config.json"),
    ],
)
def test_a_path_without_a_model_is_named(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    line = message(tmp_path, f'{{"batcher_config": {{"max_tokens": 1}},\n"model_path": "{name}"}}')
    assert line == (
        f'example.json:2: model_path: found "{name}", accepted: a model directory '
        f"({tmp_path / name} {problem}), a GGUF file or a hub name"
    )


class HubExample(ConfigModel):
    model: ModelPath | None = None
    tokenizer: TokenizerPath | None = None


def hub_example(tmp_path: Path, **fields: str) -> HubExample:
    return load_config(write(tmp_path, json.dumps(fields)), HubExample)


@pytest.mark.parametrize(
    "name", ["gpt2", "meta-llama/Llama-3.1-8B", "modelscope:Qwen/Qwen3-8B", "a/b/c.gguf"]
)
def test_a_hub_name_is_not_taken_for_a_path(tmp_path: Path, name: str) -> None:
    assert hub_example(tmp_path, model=name, tokenizer=name) == HubExample.model_construct(
        model=name, tokenizer=name
    )


def test_a_directory_wins_over_a_hub_name(tmp_path: Path) -> None:
    path = model_in(tmp_path / "gpt2")
    assert hub_example(tmp_path, model="gpt2").model == str(path)
    (path / "config.json").unlink()
    assert hub_example(tmp_path, tokenizer="gpt2").tokenizer == str(path)
    with pytest.raises(ConfigError, match=rf"\({path} holds no config.json\), a GGUF file or a hub name"):
        hub_example(tmp_path, model="gpt2")


@pytest.mark.parametrize("field", ["model", "tokenizer"])
def test_a_file_is_no_directory(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=r"example\.json is not a directory"):
        hub_example(tmp_path, **{field: "example.json"})


@pytest.mark.parametrize("field", ["model", "tokenizer"])
@pytest.mark.parametrize(
    "name", ["./gpt2", "/no/where", "../a/b", "a/b/c", "~/nowhere-at-all", "PATH_TO_MODEL_DIR", "./x.gguf"]
)
def test_what_looks_like_a_path_must_exist(tmp_path: Path, field: str, name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        hub_example(tmp_path, **{field: name})


SECRET = "sk-do-not-show-me"


def test_a_secret_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNT_KEY", SECRET)
    text = '{"batcher_config": {"max_tokens": 1}, "accounts": [{"api_key": "env:ACCOUNT_KEY"}]}'
    config = load_config(write(tmp_path, text), Example)
    assert config.accounts[0].api_key.get_secret_value() == SECRET


def test_a_secret_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCOUNT_KEY", raising=False)
    text = '{"batcher_config": {"max_tokens": 1},\n"accounts": [{"api_key": "env:ACCOUNT_KEY"}]}'
    assert message(tmp_path, text) == (
        "example.json:2: accounts[0].api_key: the environment variable 'ACCOUNT_KEY' is not set"
    )


def test_a_secret_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = json.dumps({"batcher_config": {"max_tokens": 1}, "accounts": [{"api_key": SECRET}]})
    config = load_config(write(tmp_path, text), Example)
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s %r", config, config)
    shown = [caplog.text, repr(config), str(config.model_dump()), config.model_dump_json()]
    assert config.accounts[0].api_key.get_secret_value() == SECRET
    assert all(SECRET not in text for text in shown)


@pytest.mark.parametrize(
    "accounts",
    [
        [{"api_key": [SECRET]}],
        [{"api_key": {"a": SECRET}}],
        [SECRET],
        [{"api_kee": SECRET}],
        {"api_key": SECRET},
        SECRET,
        [{"api_key": "k", "org_id": {"x": SECRET}}],
    ],
)
def test_a_misplaced_secret_is_not_shown_by_the_error(tmp_path: Path, accounts: Any) -> None:
    document = {"batcher_config": {"max_tokens": 1}, "accounts": accounts}
    assert SECRET not in message(tmp_path, json.dumps(document))
