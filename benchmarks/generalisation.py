"""How good a model is on ground that it never saw: one site is left out in turn; farmland, and steep forests.

    python benchmarks/generalisation.py train --data ../shared/data --leave-out bcts --out /tmp/general
    python benchmarks/generalisation.py train --data ../shared/data --leave-out osbs --out /tmp/general
    python benchmarks/generalisation.py train --data ../shared/data --leave-out duc --out /tmp/general
    python benchmarks/generalisation.py score --data ../shared/data --out /tmp/general

Every model trains with the settings of configs/general.toml on all real sites but the one left out, on canopy
heights put on virtual terrain, and on virtual forests; farmland (ign) never trains, and the canopy of duc is
scored on steep virtual terrain. Nothing is selected on what is scored, but that farmland also judged in
benchmarks/ablation.py. Whole sites are predicted with overlapping windows. Intervals hold 95% of 1000
bootstrap samples of square blocks of 40 m.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forestgaps_jax import Config, create_state, train
from forestgaps_jax.data import (
    create_data,
    load_sites,
    put_on_terrain,
    read_chm,
    read_site,
    virtual_forest,
)
from forestgaps_jax.inference import load_run, opening_baseline, predict_array
from forestgaps_jax.metrics.gaps import boundary_f1
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.types import Site

PAIRS = {"bcts": ("bcts/bcts_050", "bcts/bcts_100"), "osbs": ("osbs/osbs_100",), "ign": ("ign/ign_200",)}
TRAINED = ("bcts", "osbs")
CANOPIES = {"duc": "ALS_CHM_DUC", "cau": "ALS_CHM_CAU_2012", "boreal": "beratools_chm_030"}
FOLDS = (*TRAINED, "duc")
STEEP = ((30, 9030, 25), (35, 9035, 30), (40, 9040, 35))  # slope, seed, height of the trees
THRESHOLDS = (3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0)
BLOCK = 40.0


def main() -> None:
    """Train a fold, or score all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the real rasters")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the scores")
    parser.add_argument("--leave-out", choices=(*FOLDS, "none"), default="none")
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "general.toml")
    parser.add_argument(
        "--steps", type=int, default=0, help="about so many steps; 0: the epochs of the config"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "train":
        train_without(options)
    else:
        score_all(options)


def train_without(options: argparse.Namespace) -> None:
    """Train on all that may train but the site left out."""
    paths = [options.data / path for site in TRAINED if site != options.leave_out for path in PAIRS[site]]
    config = Config.from_toml(
        options.config,
        name=f"without_{options.leave_out}",
        runs_dir=str(options.out),
        dsm=tuple(f"{path}_DSM.tif" for path in paths),
        chm=tuple(f"{path}_CHM.tif" for path in paths),
        chm_only=tuple(str(_canopy(options.data, name)) for name in CANOPIES if name != options.leave_out),
        val_fraction=0.0,
        test_fraction=0.0,
    )
    data = create_data(load_sites(config), config)
    if options.steps:
        config.epochs = max(1, round(options.steps / data.train.steps_per_epoch))
    state = create_state(create_model_from_config(config), config)
    start = time.perf_counter()
    train(state, config, data)
    steps = config.epochs * data.train.steps_per_epoch
    print(f"without {options.leave_out}: {steps} steps in {time.perf_counter() - start:.0f} s")


def score_all(options: argparse.Namespace) -> None:
    """Score each fold on what it left out, on the steep forests, and on ground of no fold."""
    results: dict[str, Any] = {}
    for run in sorted(options.out.glob("without_*")):
        state, config = load_run(run, "last")
        left = run.name.removeprefix("without_")
        for site in _sites_for(left, options.data):
            start = time.perf_counter()
            maps = predict_array(
                state, site.dsm, THRESHOLDS, resolution=site.grid.resolution, tile_size=config.tile_size
            )
            seconds = time.perf_counter() - start
            rows = {t: _scores(site, maps[i] >= 0.5, t) for i, t in enumerate(THRESHOLDS)}
            results[f"{run.name}: {site.name}"] = {"seconds": seconds, "thresholds": rows}
            print(_table(f"{run.name}: {site.name}", site, rows, seconds), flush=True)
    (options.out / "scores.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (options.out / "scores.md").write_text(_markdown(results), encoding="utf-8")


def _canopy(data: Path, name: str) -> Path:
    return data / "chm_only" / f"{CANOPIES[name]}.tif"


def _sites_for(left: str, data: Path) -> Iterator[Site]:
    for path in (*PAIRS.get(left, ()), *PAIRS["ign"]):
        yield read_site(data / f"{path}_DSM.tif", data / f"{path}_CHM.tif")
    if left in CANOPIES:
        canopy = read_chm(_canopy(data, left))
        for slope, seed, _ in STEEP:
            yield replace(put_on_terrain(canopy, seed, slope), name=f"{left}, {slope} degrees")
    for slope, seed, height in STEEP:
        yield virtual_forest(
            seed, (512, 512), slope=slope, closure=0.98, height=height, name=f"virtual, {slope} degrees"
        )


def _scores(site: Site, predicted: np.ndarray, threshold: float) -> dict[str, Any]:
    truth, known = site.chm < threshold, site.valid
    opened = opening_baseline(site.dsm, site.grid.resolution) < threshold
    every = np.ones_like(truth)
    answers = {"model": predicted, "opening": opened, "all_gap": every}
    blocks = {name: _block_counts(answer, truth, known, site) for name, answer in answers.items()}
    scores: dict[str, Any] = {"gap_share": float(truth[known].mean())}
    for name, answer in answers.items():
        tp, fp, fn, tn = blocks[name].sum(axis=0)
        scores[name] = {
            "iou": float(_iou(blocks[name].sum(axis=0))),
            "mean_iou": float(np.mean([_iou((tp, fp, fn, tn)), _iou((tn, fn, fp, tp))])),
            "f1": float(2 * tp / max(2 * tp + fp + fn, 1)),
            "boundary_f1": float(boundary_f1(answer, truth, valid=known)),
        }
    drawn = np.random.default_rng(0).integers(0, len(blocks["model"]), (1000, len(blocks["model"])))
    samples = {name: _iou(counts[drawn].sum(axis=1).T) for name, counts in blocks.items()}
    scores["model"]["interval"] = np.nanpercentile(samples["model"], (2.5, 97.5)).tolist()
    difference = samples["model"] - samples["opening"]
    scores["difference"] = np.nanpercentile(difference, (2.5, 97.5)).tolist()
    return scores


def _block_counts(answer: np.ndarray, truth: np.ndarray, known: np.ndarray, site: Site) -> np.ndarray:
    """``[blocks, 4]`` TP, FP, FN, TN."""
    side = max(1, round(BLOCK / site.grid.resolution))
    cells = (answer & truth, answer & ~truth, ~answer & truth, ~answer & ~truth)
    edges = [np.arange(0, length, side) for length in truth.shape]
    sums = [
        np.add.reduceat(np.add.reduceat((c & known).astype(int), edges[0], 0), edges[1], 1) for c in cells
    ]
    counts = np.stack(sums, axis=-1).reshape(-1, 4)
    return counts[counts.sum(axis=1) > 0]


def _iou(counts: Any) -> Any:
    tp, fp, fn = (np.asarray(counts[i], float) for i in range(3))
    union = tp + fp + fn
    return np.where(union > 0, tp / np.maximum(union, 1), np.nan)


def _table(title: str, site: Site, rows: dict[float, Any], seconds: float) -> str:
    lines = [
        f"\n{title} ({site.shape[0]} x {site.shape[1]} px of {site.grid.resolution:g} m, {seconds:.0f} s)"
    ]
    lines.append("   t    gaps |  gap IoU [95%]         opening  all-gap | model - opening [95%]   ratio |"
                 "  mean IoU       F1            outline F1")  # fmt: skip
    for t, row in rows.items():
        m, o, a = (row[name] for name in ("model", "opening", "all_gap"))
        ratio = m["iou"] / o["iou"] if o["iou"] else np.nan
        (low, high), (worse, better) = m["interval"], row["difference"]
        lines.append(
            f"{t:5g} {row['gap_share']:6.1%} | {m['iou']:.3f} [{low:.3f}, {high:.3f}]  "
            f"{o['iou']:8.3f} {a['iou']:8.3f} | {m['iou'] - o['iou']:+.3f} [{worse:+.3f}, {better:+.3f}]  "
            f"{ratio:6.2f} | "
            + "  ".join(f"{m[k]:.3f}/{o[k]:.3f}" for k in ("mean_iou", "f1", "boundary_f1"))
        )
    return "\n".join(lines)


def _markdown(results: dict[str, Any]) -> str:
    lines = [
        "| fold: site | t (m) | gaps | gap IoU | opening | all gap | model - opening [95%] "
        "| mean IoU | F1 | outline F1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, result in results.items():
        for t, row in result["thresholds"].items():
            m, o, a = (row[name] for name in ("model", "opening", "all_gap"))
            worse, better = row["difference"]
            pairs = " | ".join(f"{m[k]:.3f} / {o[k]:.3f}" for k in ("mean_iou", "f1", "boundary_f1"))
            lines.append(
                f"| {title} | {t:g} | {row['gap_share']:.1%} | {m['iou']:.3f} | {o['iou']:.3f} "
                f"| {a['iou']:.3f} | {m['iou'] - o['iou']:+.3f} [{worse:+.3f}, {better:+.3f}] | {pairs} |"
            )
            title = ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
