"""A trained network from its run folder."""

from pathlib import Path
from typing import Literal

from forestgaps_jax import checkpoint as checkpoints
from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.state import TrainState, create_state


def load_run(
    folder: str | Path, checkpoint: Literal["best", "last"] = "best", config: Config | None = None
) -> tuple[TrainState, Config]:
    """Restore what a run has trained, and its settings.

    Args:
        folder: the run folder, as `train` and ``forestgaps-jax train`` write it.
        checkpoint: the best by ``monitor_metric`` or the last; the last too where none has a score.
        config: settings to take instead of the run's own, such as another ``precision``.

    Raises:
        FileNotFoundError: the folder is no run folder, or holds no checkpoint.
        ValueError: its settings are wrong, or those of another network; or there is no such choice.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint = {checkpoint!r}: must be 'best' or 'last'")
    settings, saved = Path(folder) / "config.toml", Path(folder) / "checkpoints"
    if not settings.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: there is no config.toml in it")
    config = config or Config.from_toml(settings)
    use_cache(config.compilation_cache_dir)
    state = create_state(create_model_from_config(config), config)
    return checkpoints.restore(saved, state, "best" if checkpoint == "best" else "latest").state, config
