"""The study in its storage: what a killed worker leaves there, and who takes it up."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import environment
from optuna.trial import TrialState

from edgekd.config.loading import draft_recipe
from edgekd.errors import CacheError, RecipeError
from edgekd.workflows.search import study as studies
from edgekd.workflows.search.job import ATTEMPTS, BEAT, FAILURE, OUTCOME, OWN, WORKER, SearchJob
from edgekd.workflows.search.results import StudyDescription, first_failure, read_study, register_study
from edgekd.workflows.search.space import make_space

FIGURES = {"metric": 0.9, "latency": 0.5, "drift": 0.1, "p50_ms": 0.02, "reference_ms": 0.04, "parameters": 100,
           "verdict": "pass", "reasons": [], "bound": 0.001}  # fmt: skip


@pytest.fixture
def plan(tmp_path):
    space = make_space(draft_recipe("digits", ("search.space.distill.loss.temperature=[2.0, 8.0]",)), None)
    ways = ("maximize", "minimize", "minimize")
    return SearchJob(space.draft, (), space.axes, 18, str(tmp_path), str(tmp_path / "s.journal"), "mine", ways, 5)


@pytest.fixture
def study(plan):
    return studies.open_study(plan)


def ask(study, plan, worker=None):
    study.sampler = studies.make_sampler(0, len(study.trials))
    trial = study.ask()
    trial.set_user_attr(BEAT, time.time())
    if worker is not None:
        trial.set_user_attr(WORKER, worker)
    studies.suggest_params(trial, plan.space, OWN in trial.user_attrs)
    return trial


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("url", [False, True], ids=["journal", "sqlite"])
def test_a_study_begins_with_the_recipe_once_wherever_it_is_kept(plan, tmp_path, url):
    if url:
        plan = SearchJob(
            plan.draft, (), plan.ranges, 18, plan.cache, f"sqlite:///{tmp_path}/s.db", "s", plan.directions, 5
        )
    for _ in range(2):  # a second machine
        study = studies.open_study(plan)
        studies.enqueue_recipe(study, plan.space.own)
    assert states(study) == ["WAITING"]
    assert ask(study, plan).params == {"distill.loss.temperature": 4.0}
    study.tell(0, [0.9, 0.5, 0.1])
    assert 2.0 <= ask(study, plan).params["distill.loss.temperature"] <= 8.0


def test_a_half_written_line_of_a_killed_writer_costs_only_itself(plan, study):
    study.enqueue_trial({})
    with Path(plan.storage).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    study.enqueue_trial({})
    assert states(studies.open_study(plan)) == ["WAITING", "WAITING"]


def test_a_trial_is_taken_up_when_its_worker_is_gone_and_not_before(plan, study, tmp_path):
    code = (
        "import sys; from pathlib import Path; from edgekd.workflows.search.study import WorkerIdentity\n"
        "with WorkerIdentity('w', Path(sys.argv[1])) as me: print(me.facts['boot'], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment())
    try:
        boot = process.stdout.readline().strip()
        lock = str(tmp_path / "search-worker-w.lock")
        params = ask(study, plan, {"name": "w", "host": "here", "boot": boot, "lock": lock}).params
        studies.requeue_abandoned(study)
        assert states(study) == ["RUNNING"]
    finally:
        process.kill()
        process.communicate()
    studies.requeue_abandoned(study)
    assert states(study) == ["FAIL", "WAITING"]
    assert not Path(lock).exists()
    assert ask(study, plan).params == params
    assert studies.count_begun(study.trials) == 1


def test_another_machines_worker_is_gone_when_it_is_silent_for_long(plan, study):
    far = {"name": "w", "host": "far", "boot": "far", "lock": "/nowhere"}
    trial = ask(study, plan, far)
    studies.requeue_abandoned(study)
    assert states(study) == ["RUNNING"]
    trial.set_user_attr(BEAT, time.time() - 2 * studies.PATIENCE_SECONDS)
    studies.requeue_abandoned(study)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_trial_that_kills_its_workers_is_given_up_and_an_interrupted_one_is_not(plan, study):
    studies.enqueue_recipe(study, plan.space.own)
    for _ in range(ATTEMPTS + 2):  # Ctrl-C, again and again
        studies.requeue(study, study.trials[ask(study, plan).number], blame=False)
    for _ in range(ATTEMPTS):
        studies.requeue(study, study.trials[ask(study, plan).number])
    assert set(states(study)) == {"FAIL"}
    found = read_study(study, plan, StudyDescription("digits", (), "accuracy", "s"))
    assert [trial.state for trial in found.trials[-2:]] == ["lost", "failed"]
    assert found.trials[-1].own
    assert "killed again and again" in found.trials[-1].reason


def test_a_result_of_a_worker_that_was_thought_gone_is_not_an_error(plan, study):
    trial = ask(study, plan)
    studies.requeue(study, study.trials[0])
    study.tell(trial, [0.9, 0.5, 0.1], skip_if_finished=True)
    assert states(study) == ["FAIL", "WAITING"]


def test_what_a_study_holds(plan, study):
    studies.enqueue_recipe(study, plan.space.own)
    own = ask(study, plan, {"host": "here"})
    own.set_user_attr(OUTCOME, FIGURES)
    study.tell(own, [0.9, 0.5, 0.1])
    bad = ask(study, plan)
    bad.set_user_attr(FAILURE, {"kind": "TaskError", "reason": "no such width"})
    study.tell(bad, state=TrialState.FAIL)
    register_study(study, StudyDescription("digits", (), "accuracy", "s"), {"cpu": "slow"})
    found = read_study(study, plan, StudyDescription("digits", (), "accuracy", "s"))
    assert [(trial.state, trial.own, trial.host) for trial in found.trials] == [
        ("done", True, "here"), ("failed", False, ""),
    ]  # fmt: skip
    assert found.trials[1].reason == "no such width"
    assert found.trials[1].settings[0].startswith("distill.loss.temperature=")
    assert list(found.machines.values()) == [{"cpu": "slow"}]
    error = first_failure(study)
    assert type(error).__name__ == "TaskError"
    assert "the only trial failed; the first: no such width" in str(error)


def test_a_study_of_another_recipe_is_not_mixed_with_this_one(study):
    register_study(study, StudyDescription("digits", (), "accuracy", "one"), {})
    register_study(study, StudyDescription("digits", (), "accuracy", "one"), {})
    with pytest.raises(
        RecipeError, match="'mine' was begun with another recipe, task or space, or by an edgekd that measured"
    ):
        register_study(study, StudyDescription("digits", (), "accuracy", "two"), {})


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("oddsql://host/db", "--storage oddsql://host/db: cannot be opened"),
        ("sqlite:////no/such/folder/s.db", "cannot be opened"),
        ("/dev/null/s.journal", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened(storage, said):
    with pytest.raises(CacheError, match=said):
        studies.open_storage(storage)


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "s.toml").write_text("[task]\n[teacher]\n")
    with pytest.raises(CacheError, match="or is no study's"):
        studies.open_storage(str(tmp_path / "s.toml"))


def test_a_password_is_shown_to_nobody():
    assert studies.without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
