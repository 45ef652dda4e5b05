"""Paired comparisons, requirements, baselines and the forms of a report."""

import io
import json
import pathlib
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rich.console
import scipy.stats
from test_evaluate import Model, another, asked, checkpoint

from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError, NotGoodEnough
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import Options, Sample
from sora_jax.evaluate.evaluate import evaluate
from sora_jax.evaluate.subjects import open_subjects, parse_subject
from sora_jax.evaluate.suites.registry import BENCHMARKS
from sora_jax.evaluate.verdict.decisions import Wanted, verdict_sentence
from sora_jax.evaluate.verdict.formats import parse_formats
from sora_jax.evaluate.verdict.statistics import compare, flipped, holm, mcnemar, number_of, samples_needed
from sora_jax.worlds.shapes.benchmarks import BENCHMARKS as SHAPES_BENCHMARKS
from sora_jax.worlds.shapes.prompt_suite import ALL, make_prompts
from sora_jax.worlds.shapes.renderer import render

QUIET = rich.console.Console(file=io.StringIO(), width=200)


def samples(values, measure="score", groups=None):
    return [Sample(f"{n}", {measure: v}, groups[n] if groups else "") for n, v in enumerate(values)]


# Statistics ------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says():
    draw, inside = np.random.default_rng(0), 0
    for _ in range(60):
        prompt = draw.normal(0, 3, 40)  # hard and easy prompts: an unpaired interval would be far wider
        a, b = prompt + draw.normal(0, 1, 40), prompt + 0.5 + draw.normal(0, 1, 40)
        (found,) = compare(samples(a), samples(b), {"score": "higher"})
        inside += found.low <= 0.5 <= found.high
        assert found.high - found.low < 1.6
    assert inside >= 51  # 95 % of 60 is 57; fewer than 51 has a chance of 1 in 1000


def test_a_bootstrap_is_over_prompts_and_not_over_samples():
    """Ten samples of each prompt that all say the same are worth one."""
    draw = np.random.default_rng(1)
    of_prompt = draw.normal(0, 1, 20)
    alone = number_of(samples(of_prompt), "score")
    repeated = number_of(samples(of_prompt.repeat(10), groups=[f"p{n // 10}" for n in range(200)]), "score")
    taken_apart = number_of(samples(of_prompt.repeat(10)), "score")
    np.testing.assert_allclose(repeated.high - repeated.low, alone.high - alone.low, rtol=0.05)
    assert taken_apart.high - taken_apart.low < 0.5 * (alone.high - alone.low)


def test_tests_and_corrections_are_those_of_the_books():
    # McNemar's exact test is a sign test of the pairs in which one side alone is right.
    assert mcnemar(1, 9) == pytest.approx(scipy.stats.binomtest(1, 10).pvalue) and mcnemar(0, 0) == 1
    # The example of Holm's method on four hypotheses.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # A share of .5 against .5 +- 0.1 of independent pairs: n = (1.96 + .84)^2 * 0.5 / 0.1^2.
    assert samples_needed(0.1, np.sqrt(0.5 / 100), 100) == pytest.approx(392, abs=2)
    # Three pairs in one direction may be chance: 2 of 8 signs are as far.
    assert flipped(np.ones(3), ["a", "b", "c"]) == pytest.approx(0.25, abs=0.02)
    assert flipped(np.ones(30), ["a"] * 30) == 1
    assert samples_needed(0.0, 1.0, 100) is None


def test_a_difference_that_is_there_is_named_and_the_rest_is_left_open():
    draw = np.random.default_rng(2)
    count = 60
    both = [{"colour": bool(draw.random() < 0.5), "shape": bool(draw.random() < 0.5)} for _ in range(count)]
    a = [Sample(f"{n}", values) for n, values in enumerate(both)]
    b = [Sample(f"{n}", values | {"colour": values["colour"] or n % 2 == 0}) for n, values in enumerate(both)]
    b[0] = Sample("0", b[0].values | {"shape": not both[0]["shape"]})
    better = {"colour": "higher", "shape": "higher"}
    found = {one.measure: one for one in compare(a, b, better)}
    assert found["colour"].better == "b" and found["colour"].share and found["shape"].better == ""
    sentence = verdict_sentence("a", "b", "shapes", list(found.values()), better)
    assert sentence.startswith("shapes: b is better than a in colour; for the rest 60 samples can't tell; about ")
    assert f"{found['shape'].needed:,} would, in shape." in sentence
    back = compare(b, a, better)
    assert [one.better for one in back if one.measure == "colour"] == ["a"]


def test_only_samples_of_the_same_prompt_and_noise_are_compared():
    a = [Sample("x", {"score": 1.0}), Sample("y", {"score": 2.0})]
    assert compare(a, [Sample("z", {"score": 5.0})], {}) == []
    (found,) = compare(a, [Sample("y", {"score": 5.0})], {"score": "lower"})
    assert (found.of, found.difference) == (1, 3.0)


# Reports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two steps of one run, of which the second obeys and the first shows another scene every second time."""
    home = tmp_path_factory.mktemp("home")
    checkpoint(home / "run")
    checkpoint(home / "run", step=4)  # keep=1 leaves the last one
    checkpoint(home / "early")
    return home


class ByStep:
    """A sampler for `evaluate` on several subjects: the model of each comes in turn."""

    def __init__(self, *models):
        self.models, self.count = models, 0

    def __call__(self, prompts, cell, first):
        model = self.models[self.count // 6]
        self.count += len(prompts)
        return model(prompts, cell, first)


def half(number):
    return asked(number) if number % 2 else another(number)


def report(home, out, sampler, wanted=None, paths=("early", "run")):
    return evaluate(
        open_subjects([str(home / path) for path in paths], (), "", out),
        out,
        benchmarks=BENCHMARKS | SHAPES_BENCHMARKS,
        suite=["shapes"],
        options=Options(samples=6, sampler=sampler),
        mesh=MeshSettings(2, ulysses=4),
        console=QUIET,
        wanted=wanted,
    )


@pytest.fixture(scope="module")
def compared(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    formats = {"markdown": str(out / "a.md"), "csv": str(out / "a.csv"), "junit": str(out / "a.xml")}
    sampler = ByStep(Model(half), Model(asked))
    with pytest.raises(NotGoodEnough) as raised:
        report(home, out, sampler, Wanted(formats, ("shapes.all >= 97 %",), command="sora-jax evaluate"))
    return out, str(raised.value)


def test_two_checkpoints_stand_side_by_side_with_their_difference(compared):
    out, _ = compared
    written = json.loads((out / "evaluation.json").read_text())
    assert written["version"] == 1 and written["run"]["devices"] == "8 cpu" and written["run"]["date"]
    first, second = written["checkpoints"]
    assert first["settings"]["sample"]["steps"] == 2 and len(first["settings"]["weights"]) == 16
    assert second["numbers"]["shapes.all_together"]["value"] == 1.0
    (comparison,) = written["comparisons"]
    total = next(one for one in comparison["measures"] if one["measure"] == ALL)
    assert total["difference"] == pytest.approx(0.5) and total["of"] == 6 and total["needed"] > 6
    assert "6 samples can't tell" in comparison["sentence"]
    assert written["best"] == {"measure": "shapes.all_together", "subject": "run"}
    page = (out / "index.html").read_text()
    assert comparison["sentence"].replace("'", "&#x27;") in page and page.count('class="pair"') == 6
    # The prompts that one side got wrong come first.
    wrong = make_prompts(6, size=(64, 64), frames=17, fps=16.0)[0]
    assert page.index(wrong, page.index('class="pair"')) < page.index("Shapes: agreement")
    assert "sora-jax evaluate" in page and "guidance" in page


def test_a_report_comes_as_markdown_csv_and_junit(compared):
    out, _ = compared
    text = (out / "a.md").read_text()
    assert "| shapes.all_together | 50.0 %" in text and "| **no** |" in text and text.startswith("- shapes: ")
    lines = (out / "a.csv").read_text().splitlines()
    assert lines[0] == "subject,measure,value,low,high,samples,better" and len(lines) == 1 + 2 * 8
    suite = ET.parse(out / "a.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite[0].find("failure").text.startswith("0.5, 95 % interval") and suite[1].find("failure") is None


def test_what_is_required_and_not_met_is_said_with_the_numbers(compared, home, tmp_path):
    _, error = compared
    assert "early: shapes.all >= 97 %: 0.5, 95 % interval" in error and "run:" not in error
    report(home, tmp_path, Model(asked), Wanted(require=("shapes.all >= 0.97", "shapes.count>=1")), ["run"])
    strict = Wanted(require=("shapes.all >= 0.97",), lower_end=True)
    with pytest.raises(NotGoodEnough, match=r"1, 95 % interval 0\.6"):
        report(home, tmp_path, Model(asked), strict, ["run"])
    with pytest.raises(InputError, match=r"no measure 'shapes\.hue'"):
        report(home, tmp_path, Model(asked), Wanted(require=("shapes.hue >= 1",)), ["run"])


def test_a_baseline_is_held_within_what_the_samples_can_tell(home, tmp_path):
    """Six pairs with three differences can't tell; thirty-two pairs with sixteen can."""
    options = {"benchmarks": BENCHMARKS | SHAPES_BENCHMARKS, "suite": ["shapes"], "console": QUIET}
    options |= {"mesh": MeshSettings(2, ulysses=4)}

    def measured(out, model, count, wanted=None):
        chosen = Options(samples=count, sampler=model)
        return evaluate([home / "run"], tmp_path / out, options=chosen, wanted=wanted, **options)

    measured("good", Model(asked), 32)
    hold = Wanted(baseline=str(tmp_path / "good/evaluation.json"))
    measured("same", Model(asked), 32, hold)
    measured("few", Model(half), 6, hold)
    with pytest.raises(
        NotGoodEnough, match=r"shapes\.all_together: shapes: no worse than the baseline: 1 before, 0\.5 now"
    ):
        measured("worse", Model(half), 32, hold)


def test_a_decision_is_an_exit_code_of_its_own(home, tmp_path, monkeypatch, capsys):
    """3 for a model that is not good enough, and the report is there; measured before, nothing is sampled."""
    report(home, tmp_path, Model(half), paths=["early"])
    flags = ["--mesh=data=2,ulysses=4", "--suite=shapes", "--samples=6", f"--out={tmp_path}", "--format=csv:-"]
    begun = ["evaluate", f"--checkpoint={home}/early", *flags]
    assert main([*begun, "--require=shapes.all >= 0.4"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("subject,measure,value") and "already measured" in told.err
    assert "shapes.all_together" in told.err  # the table, though all was measured before
    assert main([*begun, "--require=shapes.all >= 0.97"]) == 3
    assert "early: shapes.all >= 0.97: 0.5" in capsys.readouterr().err.splitlines()[-1]
    command = json.loads((tmp_path / "evaluation.json").read_text())["run"]["command"]
    assert "--require='shapes.all >= 0.97'" in command and "--samples=6" in command


# Subjects --------------------------------------------------------------------------------------------------------


def test_one_checkpoint_at_several_settings_is_several_subjects(home, tmp_path):
    text = f"{home}/run --steps=1,2 --solver=heun"
    made = open_subjects([], [text], "", tmp_path)
    assert [subject.name for subject in made] == ["run, steps 1, solver heun", "run, steps 2, solver heun"]
    assert [subject.settings.sample.steps for subject in made] == [1, 2] and made[0].out != made[1].out
    assert made[0].sample_settings == {"steps": 1, "solver": "heun"}
    assert [asked.name for asked in parse_subject("x --guidance=1,3 --name=g")] == [
        "g, guidance 1.0",
        "g, guidance 3.0",
    ]
    (named,) = open_subjects([str(home / "run/checkpoints/4")], [], "", tmp_path)
    assert (named.name, named.step, named.workdir) == ("run at 4", 4, home / "run")
    with pytest.raises(InputError, match="is the name of two subjects"):
        open_subjects([str(home / "run")], [f"{home}/run --name=run"], "", tmp_path)


def test_videos_of_others_are_measured_like_samples(home, tmp_path):
    prompts = make_prompts(6, size=(64, 64), frames=17, fps=16.0)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number, prompt in enumerate(prompts):
        write_clip(folder / f"{prompt}-0.mp4", render(half(number), frames=17, size=(64, 64)), fps=16.0)
    out = tmp_path / "out"
    subjects = [*open_subjects([str(home / "run")], [f"{folder} --name=theirs"], "", out)]
    values = evaluate(
        subjects,
        out,
        benchmarks=BENCHMARKS | SHAPES_BENCHMARKS,
        suite=["shapes"],
        options=Options(samples=6, sampler=Model(asked)),
        mesh=MeshSettings(2, ulysses=4),
        console=QUIET,
    )
    theirs = values["checkpoints"][1]
    assert theirs["objective"] == "videos" and theirs["numbers"]["shapes.all_together"]["value"] == 0.5
    assert theirs["settings"]["videos"] == 6 and "guidance" not in theirs["settings"]
    assert values["comparisons"][0]["measures"][0]["of"] == 6


def test_prompts_of_videos_come_from_a_file_or_from_their_names(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("one.mp4", "two.mp4"):
        write_clip(folder / name, np.zeros((3, 16, 16, 3), np.uint8), fps=8)

    def opened(text=""):
        return open_subjects([], [f"{folder} {text}"], "", tmp_path / "out")[0].prompts

    with pytest.raises(InputError, match=r"one\.mp4: has no prompt; write prompts\.json"):
        opened()
    for name, text in {
        "p.json": '{"one.mp4": "a cat", "two.mp4": "a dog"}',
        "p.jsonl": '{"video": "one.mp4", "prompt": "a cat"}\n{"video": "two.mp4", "prompt": "a dog"}\n',
        "p.csv": "video,prompt\none.mp4,a cat\ntwo.mp4,a dog\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert opened(f"--prompts={tmp_path / name}") == {"one.mp4": "a cat", "two.mp4": "a dog"}
    (folder / "prompts.json").write_text('{"one.mp4": "a cat"}')
    with pytest.raises(InputError, match=r"has no prompt for two\.mp4"):
        opened()
    (folder / "prompts.json").write_text('{"one.mp4": "a cat", "three.mp4": "a dog"}')
    with pytest.raises(InputError, match=r"three\.mp4: no such video"):
        opened()
    (folder / "prompts.json").write_text("[]")
    with pytest.raises(InputError, match="an object such as"):
        opened()
    with pytest.raises(InputError, match="is a folder of videos, which takes no --steps"):
        opened("--steps=4")


def test_formats_go_into_the_folder_to_a_file_or_to_standard_output():
    out = pathlib.Path("out")
    assert parse_formats(["markdown:-", "csv"], out) == {"markdown": "-", "csv": "out/evaluation.csv"}
    with pytest.raises(InputError, match="only one format"):
        parse_formats(["markdown:-", "csv:-"], out)
    with pytest.raises(InputError, match="is always written"):
        parse_formats(["json"], out)
