"""Makes a GPTQ checkpoint of 4 or 8 bits from a float one.

    python -m tools.quantize MODEL OUT --calibration text.txt   # GPTQ, with gptqmodel
    python -m tools.quantize MODEL OUT --method rtn             # round to nearest, no calibration

GPTQ (Frantar et al., 2022) looks at activations to choose codes and needs `pip install gptqmodel`.
Rounding each weight to the nearest code needs nothing but is less exact; the checkpoint says which it
was (`meta.quantizer` in its quantize_config.json). Either is served with ``"quantize_method": "gptq"``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

if not __package__:  # run as a plain script: python tools/quantize.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server.gptq.config import BITS, GROUP_SIZES, GPTQError
from tools.round_to_nearest import Recipe, quantise_checkpoint


def quantise_with_gptqmodel(model: Path, out: Path, recipe: Recipe, calibration: Path) -> None:
    """Run gptqmodel, which shows its own progress.

    Args:
        calibration: a text file, one sample a line.

    Raises:
        GPTQError: the file holds no text.
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    samples = [line for line in calibration.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not samples:
        raise GPTQError(f"{calibration} holds no text")
    config = QuantizeConfig(
        bits=recipe.bits, group_size=recipe.group_size, desc_act=recipe.desc_act, sym=recipe.sym
    )
    quantised = GPTQModel.load(str(model), config)
    quantised.quantize(samples, batch_size=1)
    quantised.save(str(out))


def choose_method(wanted: str, calibration: Path | None) -> str:
    """`auto` is gptq where gptqmodel and calibration text are at hand, else rtn.

    Raises:
        GPTQError: gptq was asked for and cannot be done.
    """
    installed = importlib.util.find_spec("gptqmodel") is not None
    if wanted == "auto":
        return "gptq" if installed and calibration is not None else "rtn"
    if wanted == "gptq" and not installed:
        raise GPTQError("--method gptq needs gptqmodel: pip install gptqmodel, or use --method rtn")
    if wanted == "gptq" and calibration is None:
        raise GPTQError("--method gptq needs --calibration, a text file with one sample a line")
    return wanted


def run(options: argparse.Namespace) -> None:
    """Carry out a command line."""
    recipe = Recipe(options.bits, options.group_size, not options.asymmetric, options.desc_act)
    method = choose_method(options.method, options.calibration)
    if options.out.exists() and any(options.out.iterdir()):
        raise GPTQError(f"{options.out} is not empty")
    if method == "gptq":
        print(f"GPTQ with gptqmodel: {recipe}")
        quantise_with_gptqmodel(options.model, options.out, recipe, options.calibration)
    else:
        print(f"round to nearest, without calibration: {recipe}")
        quantise_checkpoint(options.model, options.out, recipe)
    print(f"checkpoint in {options.out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="directory of the float checkpoint")
    parser.add_argument("out", type=Path, help="directory for the quantised one; made where it is missing")
    parser.add_argument("--bits", type=int, choices=BITS, default=4)
    parser.add_argument("--group_size", type=int, choices=GROUP_SIZES, default=128, help="-1: whole rows")
    parser.add_argument("--asymmetric", action="store_true", help="give every group its own zero point")
    parser.add_argument("--desc_act", action="store_true", help="group by activation size (gptq only)")
    parser.add_argument("--method", choices=("auto", "gptq", "rtn"), default="auto")
    parser.add_argument("--calibration", type=Path, help="text file, one sample a line (gptq only)")
    try:
        run(parser.parse_args())
    except GPTQError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
