"""The commands around a run's training: train, evaluate, replay."""

import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from forestgaps_jax.config import Config


def train(argv: list[str]) -> None:
    """Train, and score the test tiles."""
    import tyro

    file, rest = _take(argv, lambda word: word.endswith(".toml"))
    default = Config.from_toml(file) if file else Config()
    if file and not default.name:
        default = replace(default, name=Path(file).stem)

    @dataclass
    class Training:
        config: Annotated[Config, tyro.conf.arg(name="")]
        resume: Literal["auto", "never"] = "auto"
        """auto: go on with the latest run of this name and these settings, from its newest checkpoint; one
        that is finished is scored again. never: begin a new run, in a folder of its own."""
        distributed: str = "off"
        """Train in several processes, on one machine or many, each started by this same command. auto: as TPU
        VMs, SLURM or Open MPI tell; or the address host:port of process 0. runs_dir must be on a disk that
        all of them see; process 0 alone prints, logs and draws. See docs/scaling.md."""
        process_id: int | None = None
        """Number of this process, from 0; with an address."""
        process_count: int | None = None
        """How many processes there are; with an address."""

    settings = tyro.cli(
        Training,
        args=rest,
        default=Training(default),
        prog=f"forestgaps-jax train {file or '[CONFIG.toml]'}",
        description="Train a gap model. Settings are read from the TOML file, then from the command line. "
        "A training that was stopped or killed goes on when the same command is given again.",
    )
    settings.config.validate()
    from forestgaps_jax.experiment import run_training
    from forestgaps_jax.parallel import join_processes

    join_processes(settings.distributed, settings.process_id, settings.process_count)
    _leave_speaking_to_main()
    folder, _ = run_training(settings.config, settings.resume)
    quoted = shlex.quote(str(folder))
    print(f"\nrun folder: {folder}")
    print(f"figures:    {folder}/figures")
    print(f"curves:     tensorboard --logdir {quoted}    (pip install tensorboard)")
    print(f"one page:   forestgaps-jax report {quoted}")
    print(f"a map:      forestgaps-jax predict {quoted} DSM.tif")
    print(f"once more:  forestgaps-jax evaluate {quoted}")


def _leave_speaking_to_main() -> None:
    from forestgaps_jax.parallel import is_main

    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        logging.getLogger("forestgaps_jax").setLevel(logging.ERROR)


def evaluate(argv: list[str]) -> None:
    """Score a run again."""
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
    assert folder is not None  # help has ended the program by now
    from forestgaps_jax.experiment import run_evaluation

    run_evaluation(folder, settings.config, settings.checkpoint)


def replay(argv: list[str]) -> None:
    """Look at a step that was not finite."""
    import tyro

    @dataclass
    class Replay:
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_FOLDER")]
        """Folder of a run that has diverged, or its diverged_step_N."""

    settings = tyro.cli(
        Replay,
        args=argv,
        prog="forestgaps-jax replay",
        description="Take the step in which a training has diverged once more, and say what it read, and "
        "where weights, outputs and gradients are infinite or NaN.",
    )
    from forestgaps_jax.replay import format_replay, replay

    print(format_replay(replay(settings.folder)))


def _take(argv: list[str], wanted: Callable[[str], bool]) -> tuple[str | None, list[str]]:
    """The first word that is wanted, and the others."""
    position = next((i for i, word in enumerate(argv) if wanted(word)), None)
    if position is None:
        return None, argv
    return argv[position], argv[:position] + argv[position + 1 :]
