"""The pilot: its analysis of variance against planted variances, its advice, and real small runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels.cli import main as cli_main
from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.evaluation.pilot import pilot
from datamodels.evaluation.settings import Pilot, Setting, recommend, save_plot, variances
from datamodels.store import Store
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

ALPHAS = (0.2, 0.5)
RECIPE = Recipe(hidden=(8,), epochs=2)
TASK = TrainRecipe(RECIPE, "digits")
YAML = "dataset: digits\nrecipe: {architecture: mlp, hidden: [8], epochs: 2}\n"


def planted(masks: int, replicates: int, targets: int, signal: float, noise: float, seed: int) -> NDArray[np.float64]:
    """Outputs whose targets share effects of masks and of seeds, as those of real models do."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(8, targets)) / np.sqrt(8)
    of_mask, of_seed = rng.normal(size=(masks, 1, 8)) @ mix, rng.normal(size=(masks, replicates, 8)) @ mix
    return rng.normal(size=targets) + np.sqrt(signal) * of_mask + np.sqrt(noise) * of_seed


# -- the analysis of variance -------------------------------------------------------------------------


def test_variances_are_those_of_a_textbook_analysis() -> None:
    """Target by target, from sums of squares as they are written."""
    y = planted(7, 3, 5, 1.0, 0.5, 0)
    signals, noises = [], []
    for k in range(5):
        one = y[:, :, k]
        between = 3 * sum((row.mean() - one.mean()) ** 2 for row in one) / (7 - 1)
        within = sum(((row - row.mean()) ** 2).sum() for row in one) / (7 * (3 - 1))
        signals.append((between - within) / 3)
        noises.append(within)
    found = variances(y)
    assert found.signal == pytest.approx(np.mean(signals))
    assert found.noise == pytest.approx(np.mean(noises))
    assert found.reliability == pytest.approx(np.mean(signals) / (np.mean(signals) + np.mean(noises)))


@pytest.mark.parametrize(("signal", "noise"), [(0.5, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_variances_are_found_and_the_interval_covers(signal: float, noise: float) -> None:
    truth = signal / (signal + noise)
    found = [variances(planted(16, 2, 300, signal, noise, seed), seed=seed) for seed in range(150)]
    assert np.mean([one.signal for one in found]) == pytest.approx(signal, rel=0.12)
    assert np.mean([one.noise for one in found]) == pytest.approx(noise, rel=0.12)
    assert np.mean([one.reliability_ci[0] <= truth <= one.reliability_ci[1] for one in found]) >= 0.84
    assert np.mean([one.reliability_ci[1] - one.reliability_ci[0] for one in found]) < 0.4


def test_noise_alone_is_not_taken_for_signal() -> None:
    """Negative estimates of single targets must count, or their mean would be above 0."""
    found = variances(np.random.default_rng(0).normal(size=(16, 2, 2000)))
    assert found.reliability < 0.02
    assert found.reliability_ci[0] == 0


def test_degenerate_outputs() -> None:
    constant = variances(np.ones((4, 2, 3)))
    assert (constant.signal, constant.noise, constant.reliability, constant.reliability_ci) == (0, 0, 0, (0, 0))
    by_mask_alone = variances(np.repeat(np.random.default_rng(0).normal(size=(8, 1, 3)), 2, axis=1))
    assert by_mask_alone.reliability == pytest.approx(1)
    for shape in ((2, 2, 3), (3, 1, 3), (3, 2, 0), (3, 2)):
        with pytest.raises(RequestError, match="outputs have shape"):
            variances(np.ones(shape))


# -- the advice ---------------------------------------------------------------------------------------


def setting(
    alpha: float, accuracy: float, reliability: float, models_per_hour: float, half: float = 0.02, recipe: str = "mlp"
) -> Setting:
    ci = (max(0.0, reliability - half), reliability + half)
    noise = 1 - reliability
    return Setting(recipe, alpha, 32, accuracy, 0.005, reliability, noise, reliability, ci, 1.0, models_per_hour)


def test_the_most_evidence_per_hour_is_taken_of_those_that_learn() -> None:
    settings = [
        setting(0.05, 0.65, 0.50, 9000),  # the most, but poor
        setting(0.1, 0.80, 0.40, 4000),
        setting(0.5, 0.90, 0.60, 1000.4),
        setting(0.35, 0.85, 0.01, 1000, recipe="cnn"),
        setting(0.5, 0.85, 0.02, 1000, recipe="cnn"),
    ]
    best, reasons = recommend(settings, chance=0.5)
    assert best is settings[1]
    text = "\n".join(reasons)
    assert "Take mlp at alpha 0.1" in text
    assert "4,000 models are trained per hour" in text
    assert "Next is mlp at alpha 0.5 with 38% of that product; their 95 % intervals do not overlap" in text
    assert (
        "less than halfway (0.700) from chance (0.500) to the best (0.900, mlp at alpha 0.5): mlp at alpha 0.05" in text
    )
    assert "Of the other recipes alone, take cnn at alpha 0.5." in text
    assert "hidden subgroups; alpha 0.5 suits the prediction" in text


def test_a_difference_within_the_error_is_called_so() -> None:
    settings = [setting(0.2, 0.9, 0.40, 1000, half=0.1), setting(0.5, 0.9, 0.45, 1000, half=0.1)]
    best, reasons = recommend(settings, chance=0.5)
    assert best is settings[1]
    assert any("overlap: the difference may be within the error" in reason for reason in reasons)
    assert not any("Left out" in reason for reason in reasons)


def test_an_interval_that_reaches_0_is_called_so() -> None:
    best, reasons = recommend([setting(0.2, 0.9, 0.1, 1000, half=0.2)], chance=0.5)
    assert best is not None
    assert any("reaches 0: take more masks" in reason for reason in reasons)
    assert not any("Next is" in reason for reason in reasons)


def test_nothing_is_recommended_when_nothing_can_be() -> None:
    best, reasons = recommend([setting(0.2, 0.509, 0.5, 1000)], chance=0.5)
    assert best is None
    assert "No setting is surely better than always naming the largest class (0.500)" in reasons[0]
    best, reasons = recommend([setting(0.2, 0.9, 0.0, 1000)], chance=0.5)
    assert best is None
    assert "take more masks" in reasons[0]


def test_signal_over_noise_without_noise() -> None:
    assert replace(setting(0.5, 0.9, 0.5, 1), noise=0.0).snr == float("inf")
    assert replace(setting(0.5, 0.9, 0.5, 1), noise=0.0, signal=0.0).snr == 0
    assert setting(0.5, 0.9, 0.75, 1).snr == pytest.approx(3)


# -- real runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pilot]:
    folder = tmp_path_factory.mktemp("pilot") / "small"
    result = pilot(TASK, alphas=ALPHAS[::-1], masks=6, replicates=2, jobs=1, folder=folder, progress=False)
    return folder, result


def test_a_small_pilot(ran: tuple[Path, Pilot]) -> None:
    folder, result = ran
    assert [one.alpha for one in result.settings] == list(ALPHAS)
    assert result.chance == pytest.approx(249 / 497)
    for one in result.settings:
        store = Store.open(folder / f"mlp-a{one.alpha}")
        margins = np.asarray(store.array("margins"), dtype=np.float64)
        assert margins.shape == (12, 497)
        assert one.models == 12
        assert one.accuracy == pytest.approx((margins > 0).mean())
        per_mask = (margins > 0).reshape(6, -1).mean(axis=1)
        assert one.accuracy_se == pytest.approx(per_mask.std(ddof=1) / np.sqrt(6))
        assert one.reliability == variances(margins.reshape(6, 2, -1)).reliability
        seconds = np.asarray(store.array("seconds"))
        assert 0 < one.seconds_per_model < 0.2  # compilation, in the seconds, is left out
        assert one.seconds_per_model == pytest.approx(seconds.mean())
        assert one.models_per_hour == pytest.approx(3600 / seconds.mean())
    small, half = result.settings
    assert small.accuracy < half.accuracy
    assert result.best in result.settings


def test_its_models_are_those_of_a_campaign(ran: tuple[Path, Pilot]) -> None:
    folder, _ = ran
    design = Design(n_train=TASK.n_train, alpha=0.5, n_models=12, replicates=2, seed=0)
    expected = TASK(np.arange(12), design.masks(), design)["margins"]
    np.testing.assert_array_equal(Store.open(folder / "mlp-a0.5").array("margins"), expected.astype(np.float32))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_complete_stores_are_reused(ran: tuple[Path, Pilot]) -> None:
    folder, first = ran
    before = contents(folder)
    again = pilot(TASK, alphas=ALPHAS, masks=6, replicates=2, jobs=1, folder=folder, progress=False)
    assert again == first
    assert contents(folder) == before


def test_an_interrupted_pilot_goes_on(ran: tuple[Path, Pilot], tmp_path: Path) -> None:
    """One setting is complete, one lacks rows: those alone are trained, and come out the same."""
    folder, first = ran
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    done = np.load(copy / "mlp-a0.5" / "_completed.npy")
    done[[3, 8]] = False
    np.save(copy / "mlp-a0.5" / "_completed.npy", done)
    again = pilot(TASK, alphas=ALPHAS, masks=6, replicates=2, jobs=1, folder=copy, progress=False)
    assert Store.open(copy / "mlp-a0.5").completed().all()
    np.testing.assert_array_equal(
        np.load(copy / "mlp-a0.5" / "margins.npy"), np.load(folder / "mlp-a0.5" / "margins.npy")
    )
    changed = np.load(copy / "mlp-a0.5" / "seconds.npy") != np.load(folder / "mlp-a0.5" / "seconds.npy")
    assert np.flatnonzero(changed).tolist() == [3, 8]
    assert again.settings[0] == first.settings[0]
    assert again.settings[1].reliability == first.settings[1].reliability


def test_a_folder_of_something_else_is_refused(ran: tuple[Path, Pilot]) -> None:
    folder, _ = ran
    other = {"mlp": replace(RECIPE, lr=0.05)}
    with pytest.raises(RequestError, match="models of another recipe or dataset"):
        pilot(TASK, recipes=other, alphas=ALPHAS, masks=6, replicates=2, folder=folder, progress=False)
    with pytest.raises(RequestError, match="another design"):
        pilot(TASK, alphas=ALPHAS, masks=6, replicates=2, seed=1, folder=folder, progress=False)


def test_models_that_fail_are_an_error_that_says_why(tmp_path: Path) -> None:
    task = TrainRecipe(Recipe(architecture="mlp", flip=True), "digits")
    with pytest.raises(CampaignError, match=r"6 of the 6 models of mlp-a0.5 are missing: .*are for pictures"):
        pilot(task, alphas=[0.5], masks=3, replicates=2, jobs=1, folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (0.5, 1.0)}, "alpha is 1.0; alphas must be between 0 and 1"),
        ({"alphas": (0.0,)}, "alpha is 0.0"),
        ({"alphas": (float("nan"),)}, "alpha is nan"),
        ({"alphas": (0.5, 0.0001)}, "alpha 0.0001 of 1300 examples is 0: no subset would vary"),
        ({"alphas": ()}, "there are no alphas"),
        ({"recipes": {}}, "there are no recipes"),
        ({"recipes": {"../up": RECIPE}}, "named '../up'"),
        ({"masks": 2}, "masks is 2; give 3 or more"),
        ({"replicates": 1}, "replicates is 1; give 2 or more"),
        ({"jobs": 0}, "jobs is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        pilot(TASK, **{"folder": tmp_path / "never", "progress": False, **options})
    assert not (tmp_path / "never").exists()


def test_the_picture_has_a_line_per_recipe(ran: tuple[Path, Pilot], tmp_path: Path) -> None:
    _, result = ran
    two = replace(result, settings=result.settings + tuple(replace(one, recipe="other") for one in result.settings))
    picture = save_plot(two, tmp_path / "p.svg").read_text()
    assert picture.count("<svg") == 1
    assert save_plot(result, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


# -- the command --------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        cli_main(["pilot", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == status, said.err
    return said.out if status == 0 else said.err


def test_the_command(ran: tuple[Path, Pilot], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, first = ran
    (tmp_path / "mlp.yaml").write_text(YAML)
    picture = tmp_path / "p.png"
    options = ["--recipe", str(tmp_path / "mlp.yaml"), "--alphas", "0.2,0.5", "--masks", "6", "--jobs", "1"]
    options += ["--out", str(folder)]
    facts = json.loads(command(capsys, *options, "--plot", str(picture), "--json"))
    assert facts == {**json.loads(json.dumps(first.to_dict())), "plot": str(picture)}
    assert picture.stat().st_size > 1000
    text = command(capsys, *options)
    assert "reliability (95 %)" in text
    assert all(reason in text for reason in first.reasons)
    for one in first.settings:
        assert f"{one.accuracy:.3f} ± {one.accuracy_se:.3f}" in text


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlp, other = tmp_path / "mlp.yaml", tmp_path / "other.yaml"
    mlp.write_text(YAML)
    other.write_text(YAML.replace("digits", "digits:pictures"))
    (tmp_path / "sub").mkdir()
    twin = tmp_path / "sub" / "mlp.yaml"
    twin.write_text(YAML)
    for arguments, message in (
        ([str(mlp), "--recipe", str(other)], "has dataset 'digits:pictures'"),
        ([str(mlp), "--recipe", str(twin)], "two recipes are named 'mlp'"),
        ([str(tmp_path / "none.yaml")], "cannot read"),
        ([str(mlp), "--alphas", "half"], "--alphas is 'half'; give numbers"),
        ([str(mlp), "--alphas", "0.5,2"], "alpha is 2.0"),
        ([str(mlp), "--plot", "p.txt"], "must end in .png"),
    ):
        said = command(capsys, "--recipe", *arguments, status=2)
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
        assert message in said
