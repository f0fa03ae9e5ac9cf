"""Copies the packages of this project into another one, under a name of its own.

    .venv/bin/python -m tools.copy_packages ../myproject/inference
    .venv/bin/python -m tools.copy_packages ../myproject/inference --packages protocol utils client

They become `inference.protocol`, `inference.server` and so on: imports, and names of modules in strings, are
rewritten, so that a project with a `utils` or a `client` of its own keeps them. The apps come along and run
from the other project's root as modules (`-m inference.continuous_batching_server_app --port 8001`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from utils.commands import ROOT, with_interpreter

PACKAGES = ("protocol", "utils", "client", "server")
NEEDS = {
    "protocol": (),
    "utils": ("protocol",),
    "client": ("protocol", "utils"),
    "server": ("protocol", "utils"),
}
APPS = {
    "client_app.py": "client",
    "continuous_batching_server_app.py": "server",
    "static_batching_server_app.py": "server",
    "vllm_app.py": "utils",
}
_NAMES = "|".join(PACKAGES)
_IMPORT = re.compile(rf"^(\s*)from ({_NAMES})(?=[. ])", re.M)
_STRING = re.compile(rf"""(["'])({_NAMES})\.(?=[a-z_])""")
_ROOT = re.compile(r"^(_?ROOT = Path\(__file__\)\.resolve\(\)\.parents)\[(\d)\]", re.M)


def rewritten(source: str, prefix: str) -> str:
    """Python source with the packages below `prefix`, a dotted name."""
    deeper = prefix.count(".") + 1
    source = _IMPORT.sub(rf"\1from {prefix}.\2", source)
    source = _STRING.sub(rf"\1{prefix}.\2.", source)
    return _ROOT.sub(lambda found: f"{found[1]}[{int(found[2]) + deeper}]", source)


def copy(target: Path, prefix: str, packages: list[str]) -> None:
    """Copy `packages`, and the apps that need no others, to directory `target`, which becomes a package.

    Raises:
        ValueError: `target` exists, or a package is left out that another one needs.
    """
    for package in packages:
        if missing := set(NEEDS[package]) - set(packages):
            raise ValueError(f"{package} needs {', '.join(sorted(missing))}")
    if target.exists():
        raise ValueError(f"{target} exists")
    for package in packages:
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    for app, package in APPS.items():
        if package in packages:
            shutil.copy(ROOT / app, target / app)
    shutil.copy(ROOT / "LICENSE", target)
    (target / "__init__.py").touch()
    for file in target.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        file.write_text(rewritten(text, prefix), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="directory to make, in the root of the other project")
    parser.add_argument("--name", help="dotted name of the package; default: that of the directory")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=PACKAGES, metavar="PACKAGE")
    args = parser.parse_args(argv)
    name = args.name or args.target.resolve().name
    if not re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*)*", name, re.IGNORECASE):
        parser.error(f"{name!r} is not the name of a package")
    try:
        copy(args.target, name, list(args.packages))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"copied {', '.join(args.packages)} to {args.target}; import them as {name}.{args.packages[0]}, …")


if __name__ == "__main__":
    main()
