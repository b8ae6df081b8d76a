"""The command line: ``forestgaps-jax train | evaluate | info``."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from forestgaps_jax.config import Config

_USAGE = """usage: forestgaps-jax COMMAND ...

  train [CONFIG.toml] [--setting value ...]   train a gap model; see configs/ for examples
  evaluate RUN_FOLDER [--setting value ...]   score a run again, on its test tiles or on other rasters
  info                                        versions and devices

forestgaps-jax COMMAND --help lists the settings of a command, with defaults and meanings."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {"train": _train, "evaluate": _evaluate, "info": _info}
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command not in commands:
        print(f"forestgaps-jax: there is no command {command!r}\n\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        commands[command](rest)
    except KeyboardInterrupt:
        print(f"\nforestgaps-jax {command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"forestgaps-jax {command}: {error}", file=sys.stderr)
        return 1
    return 0


def _train(argv: list[str]) -> None:
    import tyro

    file, rest = _take(argv, lambda word: word.endswith(".toml"))
    default = Config.from_toml(file) if file else Config()
    if file and not default.name:
        default = replace(default, name=Path(file).stem)
    config = tyro.cli(
        Config,
        args=rest,
        default=default,
        prog=f"forestgaps-jax train {file or '[CONFIG.toml]'}",
        description="Train a gap model. Settings are read from the TOML file, then from the command line.",
    )
    config.validate()
    from forestgaps_jax.experiment import run_training

    folder, _ = run_training(config)
    quoted = shlex.quote(str(folder))
    print(f"\nrun folder: {folder}")
    print(f"figures:    {folder}/figures")
    print(f"curves:     tensorboard --logdir {quoted}    (pip install tensorboard)")
    print(f"once more:  forestgaps-jax evaluate {quoted}")


def _evaluate(argv: list[str]) -> None:
    import tyro

    folder, rest = _take(argv, lambda word: (Path(word) / "config.toml").is_file())
    if folder is None and not {"-h", "--help"} & set(argv):
        raise ValueError(f"no run folder (with a config.toml) among the words: {' '.join(argv)}")

    @dataclass
    class Evaluation:
        config: Annotated[Config, tyro.conf.arg(name="")]
        checkpoint: Literal["best", "last"] = "best"
        """Which checkpoint to score."""

    default = Evaluation(Config.from_toml(Path(folder) / "config.toml") if folder else Config())
    settings = tyro.cli(
        Evaluation,
        args=rest,
        default=default,
        prog=f"forestgaps-jax evaluate {folder or 'RUN_FOLDER'}",
        description="Score a run's checkpoint. Name other rasters with --dsm and --chm to score those.",
    )
    settings.config.validate()
    assert folder is not None  # help has ended the program by now
    from forestgaps_jax.experiment import run_evaluation

    run_evaluation(folder, settings.config, settings.checkpoint)


def _info(argv: list[str]) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in (
        "forestgaps-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "rasterio",
    ):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not installed")
    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")


def _take(argv: list[str], wanted) -> tuple[str | None, list[str]]:
    """The first word that is wanted, and the others."""
    position = next((i for i, word in enumerate(argv) if wanted(word)), None)
    if position is None:
        return None, argv
    return argv[position], argv[:position] + argv[position + 1 :]
