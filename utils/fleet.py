"""A fleet: several servers of one host, and the gateway in front of them, in one file.

A name of the fleet stands for a `Service`. Pid files and logs are those of the services, so that whatever
`start_app.py` does with a service it does with one of a fleet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from utils.choices import one_of
from utils.config import ConfigError, ConfigModel, load_config, resolve_path
from utils.kinds import KINDS, Place
from utils.options import ClientAppOptions, ServiceUrl
from utils.running import GATEWAY, ServiceError
from utils.services import Service

GATEWAY_NAME = "gateway"


def _check_file(value: str, info: ValidationInfo) -> str:
    path = resolve_path(value, info)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}")
    return path


def _check_gpu(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", value):
        return value
    raise PydanticCustomError("gpu", "the number of a GPU, or its UUID, as `nvidia-smi -L` lists them")


FilePath = Annotated[str, AfterValidator(_check_file)]
Gpu = Annotated[str, BeforeValidator(_check_gpu)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


class GatewayEntry(ConfigModel):
    """The gateway of a fleet."""

    config: FilePath = Field(
        description="its `client_config.json`; which servers it has follows from the fleet"
    )
    port: Port = 8000
    debug: bool = Field(False, description="log at level DEBUG")


class ServerEntry(ConfigModel):
    """Servers of a fleet that differ in nothing but port and GPUs."""

    name: Name = Field(description="for `--only`; with several replicas each has a number behind it, from 1")
    kind: Annotated[str, one_of(KINDS)] = "continuous_batching"
    config: FilePath = Field(description="configuration of the servers")
    port: Port = Field(description="port of the first replica; the others have the next ones")
    replicas: Annotated[int, Field(ge=1)] = 1
    model_id: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="name under which the model is served; default: as the configuration says"
    )
    gpus: tuple[Gpu, ...] | None = Field(
        None,
        description="numbers or UUIDs of GPUs (`CUDA_VISIBLE_DEVICES`), shared out evenly among replicas; "
        "`[]`: none; `null`: as `start_app.py` is run",
    )
    share_gpus: bool = Field(False, description="other servers of the fleet may have the same GPUs")
    environment: dict[str, str] = Field({}, description="further variables, e.g. `OMP_NUM_THREADS`")
    debug: bool = Field(False, description="log at level DEBUG")

    @model_validator(mode="after")
    def _check(self) -> ServerEntry:
        if self.port + self.replicas - 1 > 65535:
            raise ValueError(f"{self.replicas} replicas from port {self.port} on go beyond port 65535")
        if self.gpus is not None and len(self.gpus) % self.replicas:
            raise ValueError(
                f"{len(self.gpus)} GPUs cannot be shared out evenly: replicas is {self.replicas}"
            )
        if self.gpus is not None and "CUDA_VISIBLE_DEVICES" in self.environment:
            raise ValueError("gpus and CUDA_VISIBLE_DEVICES both say which GPUs are used: give one of them")
        return self

    def members(self) -> Iterator[Member]:
        """Its replicas."""
        each = len(self.gpus or ()) // self.replicas
        for i in range(self.replicas):
            name = self.name if self.replicas == 1 else f"{self.name}-{i + 1}"
            gpus = None if self.gpus is None else self.gpus[i * each : (i + 1) * each]
            yield Member(name, self, self.port + i, gpus)


@dataclass(frozen=True)
class Member:
    """One server of a fleet."""

    name: str
    entry: ServerEntry
    port: int
    gpus: tuple[str, ...] | None

    def service(self, host: str, client_url: str | None) -> Service:
        """What is started."""
        environment = dict(self.entry.environment)
        if self.gpus is not None:
            # numbers as nvidia-smi has them; by itself CUDA counts the fastest GPU first
            environment |= {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return KINDS[self.entry.kind].at(
            Place(host, self.port, client_url, environment),
            config=Path(self.entry.config),
            model_id=self.entry.model_id,
            debug=self.entry.debug,
        )


class FleetConfig(ConfigModel):
    """The file of ``start_app.py --fleet``."""

    host: str = Field("127.0.0.1", description="address on which all of them listen")
    gateway: GatewayEntry | None = Field(None, description="`null`: the gateway runs elsewhere")
    client_url: ServiceUrl | None = Field(None, description="gateway elsewhere that the servers join")
    servers: Annotated[tuple[ServerEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> FleetConfig:
        if self.gateway is not None and self.client_url is not None:
            raise ValueError("client_url has no effect beside a gateway of the fleet's own")
        self._check_names()
        self._check_ports()
        self._check_gpus()
        return self

    def members(self) -> list[Member]:
        """All servers."""
        return [member for entry in self.servers for member in entry.members()]

    def _check_names(self) -> None:
        owners = {GATEWAY_NAME: -1}
        for i, entry in enumerate(self.servers):
            for name in (entry.name, *(member.name for member in entry.members())):
                if owners.setdefault(name, i) != i:
                    raise ValueError(f"the name {name!r} is given twice")

    def _check_ports(self) -> None:
        owners = {} if self.gateway is None else {self.gateway.port: GATEWAY_NAME}
        for member in self.members():
            other = owners.setdefault(member.port, member.name)
            if other != member.name:
                raise ValueError(f"{other} and {member.name} cannot both have port {member.port}")

    def _check_gpus(self) -> None:
        owners: dict[str, Member] = {}
        for member in self.members():
            for gpu in member.gpus or ():
                other = owners.setdefault(gpu, member)
                if other is not member and not (member.entry.share_gpus and other.entry.share_gpus):
                    raise ValueError(
                        f"{other.name} and {member.name} have the same GPU {gpu}; if that is meant, "
                        "set 'share_gpus' for both and limit the memory of each"
                    )


@dataclass(frozen=True)
class Fleet:
    """A checked fleet.

    Attributes:
        path: of its file.
        config: what it says.
        services: by name, the gateway first.
    """

    path: Path
    config: FleetConfig
    services: Mapping[str, Service]

    @classmethod
    def load(cls, path: Path) -> Fleet:
        """The fleet of the file at `path`.

        Raises:
            ConfigError: it cannot be used.
        """
        config = load_config(path, FleetConfig)
        services: dict[str, Service] = {}
        client_url: str | None = config.client_url
        if config.gateway is not None:
            options = ClientAppOptions(
                host=config.host,
                port=config.gateway.port,
                debug=config.gateway.debug,
                client_config_file_path=Path(config.gateway.config),
            )
            services[GATEWAY_NAME] = gateway = Service(GATEWAY, GATEWAY, options)
            client_url = gateway.url
        services |= {member.name: member.service(config.host, client_url) for member in config.members()}
        return cls(path, config, services)

    def members(self, names: Sequence[str]) -> list[Member]:
        """The servers among `names`."""
        return [member for member in self.config.members() if member.name in names]

    def select(self, only: str | None) -> list[str]:
        """The names that `only` means: names of servers, and of entries for all replicas; None: all.

        Raises:
            ServiceError: a name is not of this fleet.
        """
        if only is None:
            return list(self.services)
        entries = {entry.name: [member.name for member in entry.members()] for entry in self.config.servers}
        chosen: list[str] = []
        for name in filter(None, map(str.strip, only.split(","))):
            if name not in self.services and name not in entries:
                raise ServiceError(f"{self.path} has no {name!r}; its names: {', '.join(self.services)}")
            chosen += [name] if name in self.services else entries[name]
        if not chosen:
            raise ServiceError(f"--only names nothing; the names of {self.path}: {', '.join(self.services)}")
        return list(dict.fromkeys(chosen))

    def check_gpus(
        self, names: Sequence[str], needed: Callable[[Member], int | None], here: set[str]
    ) -> None:
        """Refuse GPUs that there are not, or that a server would leave idle or miss.

        Args:
            names: what is to be started.
            needed: how many GPUs a server uses, as its configuration says; None: all that it sees.
            here: numbers and UUIDs of the GPUs of this machine.

        Raises:
            ConfigError: one line that names the server.
        """
        for member in self.members(names):
            if not member.gpus:
                continue
            for gpu in member.gpus:
                if gpu not in here:
                    found = f"it has {', '.join(sorted(here))}" if here else "nvidia-smi finds none"
                    raise ConfigError(f"{self.path}: {member.name}: this machine has no GPU {gpu}; {found}")
            uses = needed(member)
            if uses is not None and uses != len(member.gpus):
                raise ConfigError(
                    f"{self.path}: {member.name}: GPUs by the fleet: {len(member.gpus)}, "
                    f"by its configuration: {uses}"
                )
