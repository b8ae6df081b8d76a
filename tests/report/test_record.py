import json

import pytest

from forestgaps_jax.metrics import to_json
from forestgaps_jax.report.record import read_record


def test_a_whole_run_is_read_and_lacks_nothing(trained, scores):
    record = read_record(trained)
    assert record.missing == []
    assert to_json(record.scores) == scores
    assert len(record.history["lr"]) == record.config.epochs == 2
    log = record.log
    assert log.ended == "end"
    assert 0 < log.seconds < 600
    assert log.started[:2] == "20"
    assert log.device.startswith("1 x ")
    assert {word.split()[0] for word in log.versions.split(", ")} >= {"forestgaps_jax", "jax", "flax"}


def test_the_weights_are_those_of_the_network(trained):
    from forestgaps_jax.models import create_model_from_config, parameter_count

    record = read_record(trained)
    assert record.log.weights == parameter_count(create_model_from_config(record.config))


def test_without_a_history_it_comes_from_the_lines_of_the_epochs(trained, run):
    (run / "history.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_metr')
    record, whole = read_record(run), read_record(trained)
    assert record.history == whole.history
    assert any("metrics.jsonl" in sentence for sentence in record.missing)


def test_the_latest_line_of_an_epoch_counts(run):
    (run / "history.json").unlink()
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(first | {"lr": 0.125}) + "\n")
    assert read_record(run).history["lr"][0] == 0.125
    assert len(read_record(run).history["lr"]) == 2


@pytest.mark.parametrize("name", ["history.json", "test_metrics.json"])
def test_a_file_that_was_cut_off_is_told(run, name):
    (run / name).write_text((run / name).read_text()[:100])
    assert any(name in sentence for sentence in read_record(run).missing)


def test_a_run_that_was_stopped_says_how_far_it_came(run):
    log = (run / "train.log").read_text().splitlines()
    (run / "train.log").write_text("\n".join(line for line in log if "s in all" not in line))
    record = read_record(run)
    assert record.log.ended == ""
    assert record.log.seconds is None
    assert any("2 of 2 epochs" in sentence for sentence in record.missing)


def test_a_training_that_went_on_adds_up_its_parts(run):
    once = read_record(run).log
    (run / "train.log").write_text(2 * (run / "train.log").read_text())
    twice = read_record(run).log
    assert twice.seconds == pytest.approx(2 * once.seconds)
    assert (twice.started, twice.ended) == (once.started, "end")


def test_a_folder_of_settings_alone_is_read(run):
    for path in run.iterdir():
        if path.is_file() and path.name != "config.toml":
            path.unlink()
    record = read_record(run)
    assert record.history is None
    assert record.scores is None
    assert record.log.versions == ""
    assert len(record.missing) == 2


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        read_record(tmp_path / "nowhere")
    (run / "config.toml").write_text("epochs = 0")
    with pytest.raises(ValueError, match="epochs = 0: must be 1 or more"):
        read_record(run)
