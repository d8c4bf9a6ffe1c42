import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from commands import as_nobody

from edgekd.errors import CacheError
from edgekd.stages.cache import CHECKPOINT, Cache, digest

KEY = "teacher-0123"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def never():
    raise AssertionError("nobody holds the lock")


def make(cache, record=None):
    with cache.claim(KEY, never) as folder:
        (folder / "model").write_text("weights")
        (folder / CHECKPOINT).write_text("last epoch")
        (folder / "sub").mkdir()
        (folder / "sub" / "deep").write_text("deep")
        cache.finish(KEY, record or {"metric": 0.5})


def fail(cache, work):
    """Begin a stage, do some work, and fail."""
    with suppress(RuntimeError), cache.claim(KEY, never) as folder:
        work(folder)
        raise RuntimeError


def test_equal_values_have_equal_digests_in_any_order():
    assert digest({"a": 1, "b": {"c": [1, 2], "d": None}}) == digest({"b": {"d": None, "c": [1, 2]}, "a": 1})


@pytest.mark.parametrize(
    "other",
    [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}, {"a": 1, "b": [1, 2], "c": None}, {"a": "1", "b": [1, 2]}],
)
def test_any_difference_changes_the_digest(other):
    assert digest({"a": 1, "b": [1, 2]}) != digest(other)


def test_a_finished_result_is_found(cache):
    assert cache.find(KEY) is None
    make(cache)
    assert cache.find(KEY) == {"metric": 0.5}
    assert Cache(cache.root).find(KEY) == {"metric": 0.5}
    assert sorted(path.name for path in cache.root.iterdir()) == [KEY, f"{KEY}.lock"]
    assert sorted(path.name for path in (cache.root / KEY).iterdir()) == ["model", "result.json", "sub"]


def test_a_finished_result_is_not_claimed_again(cache):
    make(cache)
    with cache.claim(KEY, never) as folder:
        assert folder is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "model").write_text("weightz"),
        lambda folder: (folder / "model").unlink(),
        lambda folder: (folder / "sub" / "deep").write_text(""),
        lambda folder: (folder / "result.json").write_text("{"),
        lambda folder: (folder / "result.json").write_text("{}"),
        lambda folder: (folder / "result.json").write_text("[]"),
        lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "result.json").unlink(),
    ],
    ids=["altered", "removed", "emptied", "record cut short", "no record", "a list", "no text", "record removed"],
)
def test_a_harmed_result_is_not_used_and_is_made_again(cache, harm):
    make(cache)
    harm(cache.root / KEY)
    assert cache.find(KEY) is None
    make(cache, record={"metric": 0.7})
    assert cache.find(KEY) == {"metric": 0.7}


def test_an_altered_record_is_not_used(cache):
    make(cache)
    path = cache.root / KEY / "result.json"
    stored = json.loads(path.read_text())
    stored["record"]["metric"] = 0.9
    path.write_text(json.dumps(stored))
    assert cache.find(KEY) is None


def test_a_result_that_does_not_fit_is_made_again(cache):
    make(cache)
    with cache.claim(KEY, never, lambda record: "metric" in record) as folder:
        assert folder is None
    with cache.claim(KEY, never, lambda record: "accuracy" in record) as folder:
        cache.finish(KEY, {"accuracy": 0.5})
    assert cache.find(KEY) == {"accuracy": 0.5}


def test_a_result_that_may_not_be_read_is_named(cache, monkeypatch):
    # Root may read everything, and tests may run as root.
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    make(cache)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CacheError, match=r"result\.json: Permission denied; .*--cache"):
        cache.find(KEY)


def test_what_others_may_read_of_a_result_is_for_the_umask_to_say(cache):
    before = os.umask(0o027)
    try:
        make(cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE((cache.root / KEY / "result.json").stat().st_mode) == 0o640


def test_a_stage_that_fails_leaves_no_result(cache):
    def work(folder):
        (folder / "model").write_text("half")

    fail(cache, work)
    assert cache.find(KEY) is None
    assert not (cache.root / KEY).exists()


def test_of_a_failed_stage_only_the_checkpoint_stays(cache):
    def work(folder):
        (folder / CHECKPOINT).write_text("epoch 2")
        (folder / f".{CHECKPOINT}.tmp").write_text("half")
        (folder / "model").write_text("half")
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        (folder / "link").symlink_to(folder / "sub")

    fail(cache, work)
    with cache.claim(KEY, never) as folder:
        assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
        assert (folder / CHECKPOINT).read_text() == "epoch 2"


def test_a_file_in_the_place_of_the_cache(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match="--cache"):
            Cache(root)


def test_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for root in (tmp_path, tmp_path / "cache"):
        with as_nobody(), pytest.raises(CacheError, match="--cache"):
            Cache(root)


def test_a_cache_on_a_file_system_that_takes_no_files():
    with pytest.raises(CacheError, match="--cache"):
        Cache(Path("/proc/edgekd"))


RACE = f"""
import pathlib, sys, time
from edgekd.stages.cache import Cache
cache = Cache(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
with cache.claim({KEY!r}, lambda: print("waits", flush=True)) as folder:
    if folder is not None:
        print("works", flush=True)
        sys.stdin.readline()
        (folder / "model").write_text("weights")
        cache.finish({KEY!r}, {{"metric": 0.5}})
print("found", cache.find({KEY!r}), flush=True)
"""


@pytest.fixture
def racer(cache):
    started = []

    def start():
        command = [sys.executable, "-c", RACE, str(cache.root)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_at_one_stage_run_it_once(racer):
    first, second = racer(), racer()
    go_on(first)
    assert first.stdout.readline() == "works\n"
    go_on(second)
    assert second.stdout.readline() == "waits\n"
    go_on(first)
    assert first.stdout.readline() == "found {'metric': 0.5}\n"
    assert second.stdout.read() == "found {'metric': 0.5}\n"


def test_the_lock_of_a_killed_process_does_not_block(racer, cache):
    killed, next_one = racer(), racer()
    go_on(killed)
    assert killed.stdout.readline() == "works\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    go_on(next_one)
    assert next_one.stdout.readline() == "works\n"
    go_on(next_one)
    assert next_one.stdout.read() == "found {'metric': 0.5}\n"


def test_the_one_who_waits_takes_over_from_a_killed_process(racer):
    killed, waiting = racer(), racer()
    go_on(killed)
    assert killed.stdout.readline() == "works\n"
    go_on(waiting)
    assert waiting.stdout.readline() == "waits\n"
    killed.send_signal(signal.SIGKILL)
    assert waiting.stdout.readline() == "works\n"
    go_on(waiting)
    assert waiting.stdout.read() == "found {'metric': 0.5}\n"


def content(folder):
    """Return what is below a folder: files with their text, links with their targets."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def mine(tmp_path):
    """A folder of the user's."""
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine" / "deep" / "notes.txt").write_text("mine too")
    return tmp_path / "mine"


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "link to nowhere", "file"])
def test_what_lies_in_the_place_of_a_working_folder_is_left_alone(cache, mine, kind):
    partial = cache.root / f"{KEY}.partial"
    if kind == "file":
        partial.write_text("mine")
    else:
        partial.symlink_to({"folder": mine, "file": mine / "notes.txt", "nowhere": mine / "none"}[kind.split()[-1]])
    before = content(mine.parent)
    with pytest.raises(CacheError, match=r"partial: edgekd did not make it; move it away"), cache.claim(KEY, never):
        pass
    assert {path: text for path, text in content(mine.parent).items() if not path.endswith(".lock")} == before


@pytest.mark.parametrize("name", ["link", "rounds", CHECKPOINT])
def test_links_in_a_working_folder_are_not_followed(cache, mine, name):
    fail(cache, lambda folder: (folder / name).symlink_to(mine))
    before = content(mine)
    make(cache) if name == "link" else fail(cache, lambda folder: None)
    assert content(mine) == before


def test_what_others_put_into_a_result_is_moved_aside_and_the_result_stays(cache, mine):
    make(cache)
    (cache.root / KEY / "sub" / "notes.txt").write_text("mine")
    (cache.root / KEY / "link").symlink_to(mine)
    assert cache.find(KEY) == {"metric": 0.5}
    moved = cache.set_aside(KEY)
    assert [path.name for path in moved] == ["link", "notes.txt"]
    assert moved[1].read_text() == "mine"
    assert sorted(content(cache.root / KEY)) == ["model", "result.json", "sub/deep"]
    assert cache.set_aside(KEY) == []
    assert sorted(content(mine)) == ["deep/notes.txt", "notes.txt"]


@pytest.mark.parametrize("record", ["kept", "gone"])
def test_a_result_that_is_made_again_takes_nothing_of_others_with_it(cache, record):
    make(cache)
    (cache.root / KEY / "model").write_text("damaged")
    (cache.root / KEY / "notes.txt").write_text("mine")
    if record == "gone":
        (cache.root / KEY / "result.json").unlink()
    make(cache)
    assert cache.find(KEY) == {"metric": 0.5}
    kept = {Path(path).name: text for path, text in content(cache.root / "aside").items()}
    assert kept["notes.txt"] == "mine"
    assert ("model" in kept) == (record == "gone"), "what is known to be edgekd's is not kept"


def test_a_result_that_is_a_link_to_another_disk_is_used_and_its_target_is_kept(cache, mine):
    make(cache)
    (cache.root / KEY).rename(mine / KEY)
    (cache.root / KEY).symlink_to(mine / KEY)
    assert cache.find(KEY) == {"metric": 0.5}
    (mine / KEY / "model").write_text("damaged")
    make(cache)
    assert cache.find(KEY) == {"metric": 0.5}
    assert (mine / KEY / "model").read_text() == "damaged"


def test_a_named_pipe_in_a_result_does_not_hang(cache):
    make(cache)
    os.mkfifo(cache.root / KEY / "pipe")
    assert cache.find(KEY) == {"metric": 0.5}
    assert [path.name for path in cache.set_aside(KEY)] == ["pipe"]
