"""The kinds of servers that are started, each with its app and that app's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.options import AppOptions, CbServerAppOptions, SbServerAppOptions, VllmAppOptions
from utils.running import VLLM
from utils.services import Keeping, Service


@dataclass(frozen=True)
class Place:
    """Where a server listens, on what it runs, and which gateway it tells."""

    host: str
    port: int
    client_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerKind:
    """One kind of server.

    Attributes:
        service: the kind of its `Service`.
        module: its app.
        options: of the app.
        config_option: the one of them that names the configuration.
    """

    service: str
    module: str
    options: type[AppOptions]
    config_option: str = "server_config_file_path"

    def at(self, place: Place, *, config: Path, model_id: str | None, debug: bool) -> Service:
        """A server of this kind."""
        values = {"host": place.host, "port": place.port, "debug": debug, "model_id": model_id}
        values[self.config_option] = config
        if "client_url" in self.options.model_fields:  # a foreign engine tells no gateway
            values["client_url"] = place.client_url
        kind = Keeping if self.service == VLLM else Service
        return kind(self.service, self.module, self.options.model_validate(values), place.environment)


KINDS = {
    "continuous_batching": ServerKind("cb_server_app", "continuous_batching_server_app", CbServerAppOptions),
    "static_batching": ServerKind("sb_server_app", "static_batching_server_app", SbServerAppOptions),
    "vllm": ServerKind(VLLM, "vllm_app", VllmAppOptions, "vllm_config_file_path"),
}
"""All kinds, by their names in a fleet."""
