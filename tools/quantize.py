"""Makes a GPTQ checkpoint of 4 or 8 bits from a float one.

    .venv/bin/python -m tools.quantize MODEL OUT --calibration text.txt   # GPTQ, with gptqmodel
    .venv/bin/python -m tools.quantize MODEL OUT --method rtn             # round to nearest, no calibration

GPTQ (Frantar et al., 2022) looks at activations to choose codes and needs gptqmodel.
Rounding each weight to the nearest code needs nothing but is less exact; the checkpoint says which it
was (`meta.quantizer` in its quantize_config.json). Either is served with ``"quantization": "gptq"``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

if not __package__:  # run as a plain script: python tools/quantize.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server.checkpoints.errors import ModelError
from server.quantization.gptq.config import BITS, GROUP_SIZES
from tools.round_to_nearest import Recipe, quantize_checkpoint
from utils.commands import command, with_interpreter

GPTQMODEL = "gptqmodel==7.6.0"  # the last release for torch 2.13


def quantize_with_gptqmodel(model: Path, out: Path, recipe: Recipe, calibration: Path) -> None:
    """Run gptqmodel, which shows its own progress.

    Args:
        calibration: a text file, one sample a line.

    Raises:
        ModelError: the file holds no text.
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    samples = [line for line in calibration.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not samples:
        raise ModelError(f"{calibration} holds no text")
    config = QuantizeConfig(
        bits=recipe.bits, group_size=recipe.group_size, desc_act=recipe.desc_act, sym=recipe.sym
    )
    quantized = GPTQModel.load(str(model), config)
    quantized.quantize(samples, batch_size=1)
    quantized.save(str(out))


def choose_method(wanted: str, calibration: Path | None) -> str:
    """`auto` is gptq where gptqmodel and calibration text are at hand, else rtn.

    Raises:
        ModelError: gptq was asked for and cannot be done.
    """
    installed = importlib.util.find_spec("gptqmodel") is not None
    if wanted == "auto":
        return "gptq" if installed and calibration is not None else "rtn"
    if wanted == "gptq" and not installed:
        install = command("-m", "pip", "install", GPTQMODEL)
        raise ModelError(f"--method gptq needs gptqmodel; install it or use --method rtn: {install}")
    if wanted == "gptq" and calibration is None:
        raise ModelError("--method gptq needs --calibration, a text file with one sample a line")
    return wanted


def run(options: argparse.Namespace) -> None:
    """Carry out a command line."""
    recipe = Recipe(options.bits, options.group_size, not options.asymmetric, options.desc_act)
    method = choose_method(options.method, options.calibration)
    if options.out.exists() and any(options.out.iterdir()):
        raise ModelError(f"{options.out} is not empty")
    if method == "gptq":
        print(f"GPTQ with gptqmodel: {recipe}")
        quantize_with_gptqmodel(options.model, options.out, recipe, options.calibration)
    else:
        print(f"round to nearest, without calibration: {recipe}")
        quantize_checkpoint(options.model, options.out, recipe)
    print(f"checkpoint in {options.out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="directory of the float checkpoint")
    parser.add_argument("out", type=Path, help="directory for the quantized one; made where it is missing")
    parser.add_argument("--bits", type=int, choices=BITS, default=4)
    parser.add_argument("--group_size", type=int, choices=GROUP_SIZES, default=128, help="-1: whole rows")
    parser.add_argument("--asymmetric", action="store_true", help="give every group its own zero point")
    parser.add_argument("--desc_act", action="store_true", help="group by activation size (gptq only)")
    parser.add_argument("--method", choices=("auto", "gptq", "rtn"), default="auto")
    parser.add_argument("--calibration", type=Path, help="text file, one sample a line (gptq only)")
    try:
        run(parser.parse_args())
    except ModelError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
