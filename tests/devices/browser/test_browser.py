"""With the real Chromium, the real onnxruntime-web and the real npm; where one is absent, its tests are skipped."""

import hashlib
import html
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node, make_tensor_value_info
from registry import NOWHERE, pack_package, serve_package
from requirements import BROWSER, NPM

from edgekd.config.recipe import ProfileConfig
from edgekd.devices.browser import chromium, library
from edgekd.devices.browser.chromium import NAMES, find_chromium, version
from edgekd.devices.browser.device import BrowserDevice
from edgekd.devices.browser.page import Page, decode_tensors, encode_tensors
from edgekd.devices.browser.server import Server
from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.runtime.backends import onnxruntime
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import run_rows

WEB = Runtime("onnxruntime-web")
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "web"
EMBEDDINGS = ("embedding.x", "embedding.y")
#: Tells the browsers of this process from those of other tests that run at the same time.
PREFIX = f"edgekd-chromium-{os.getpid()}-"


def save_engine(path, width=24):
    """Write an engine of two modalities: an embedding of each, and logits of both."""
    random = np.random.default_rng(7)
    shapes = {"wx": (width, 8), "wy": (width, 8), "head": (16, 5)}
    nodes = [
        make_node("MatMul", ["x", "wx"], ["embedding.x"]),
        make_node("MatMul", ["y", "wy"], ["embedding.y"]),
        make_node("Concat", list(EMBEDDINGS), ["fused"], axis=1),
        make_node("MatMul", ["fused", "head"], ["logits"]),
    ]
    outputs = {"logits": 5, **dict.fromkeys(EMBEDDINGS, 8)}
    graph = helper.make_graph(
        nodes,
        "fusion",
        [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")],
        [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()],
        [numpy_helper.from_array(random.normal(size=s).astype(np.float32), name) for name, s in shapes.items()],
    )
    return save_graph(path, graph)


def save_graph(path, graph):
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def quantize(engine, path, rows):
    """Write an engine as QDQ with unsigned weights of 7 bits, the scheme of processors without VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter([rows])

        def get_next(self):
            return next(self.rows, None)

    quantize_static(
        engine, path, Reader(), quant_format=QuantFormat.QDQ, reduce_range=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    rows = np.random.default_rng(0).normal(size=(2, 150, 24)).astype(np.float32)
    save_engine(folder / "float.onnx")
    quantize(folder / "float.onnx", folder / "uint8.onnx", {"x": rows[0], "y": rows[1]})
    save_engine(folder / "wide.onnx", width=25)
    (folder / "broken.onnx").write_text("broken")
    np.savez(folder / "x.npz", **{"input.x": rows[0], "input.y": rows[1]}, ids=np.array([object()] * 150))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _own_prefix():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chromium, "PROFILE_PREFIX", PREFIX)
        yield


@pytest.fixture(autouse=True)
def _nothing_left():
    """Check that neither a process nor a profile is left; a zombie is its parent's affair, and init's the orphaned."""
    yield
    assert processes() == []
    assert list(Path("/tmp").glob(f"{PREFIX}*")) == []


def processes():
    """Return the pids of all living processes that have a profile of ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if PREFIX.encode() in command and state != "Z":
            found.append(int(path.name))
    return sorted(found)


def evaluate(files, outputs, engine, device=None, runtime=WEB, threads=1):
    """Evaluate an engine in the browser, and by ONNX Runtime here."""
    (device or BrowserDevice()).evaluate(files / f"{engine}.onnx", runtime, files / "x.npz", outputs, threads)
    with onnxruntime.open_engine(files / f"{engine}.onnx") as session:
        expected = run_rows(session, read_feeds(files / "x.npz", session.inputs), 150)
    with np.load(outputs) as found:
        assert found.files == list(expected)
        return dict(found), expected


# --- evaluate


@BROWSER.mark
@pytest.mark.parametrize("engine", ["float", "uint8"])
def test_outputs_are_those_of_onnx_runtime(files, tmp_path, engine):
    found, expected = evaluate(files, tmp_path / "y.npz", engine)
    assert {name: x.shape for name, x in found.items()} == {"logits": (150, 5), **dict.fromkeys(EMBEDDINGS, (150, 8))}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


@BROWSER.mark
def test_two_threads(files, tmp_path):
    found, expected = evaluate(files, tmp_path / "y.npz", "float", threads=2)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


@BROWSER.mark
def test_tensors_of_every_type_come_back_as_they_went(tmp_path):
    kinds = ["float64", "bool", "int8", "uint8", "int16", "int32", "int64", "uint64"]
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in kinds]
    graph = helper.make_graph(
        [make_node("Identity", [kind], [f"{kind}.out"]) for kind in kinds],
        "identity",
        [make_tensor_value_info(kind, type_, ["batch", 3, None]) for kind, type_ in zip(kinds, types, strict=True)],
        [make_tensor_value_info(f"{kind}.out", type_, None) for kind, type_ in zip(kinds, types, strict=True)],
    )
    save_graph(tmp_path / "identity.onnx", graph)
    rows = {kind: np.random.default_rng(1).integers(0, 2, (65, 3, 1)).astype(kind) for kind in kinds}
    rows["int64"] -= 2**60
    np.savez(tmp_path / "x.npz", **{f"input.{kind}": x for kind, x in rows.items()})
    BrowserDevice().evaluate(tmp_path / "identity.onnx", WEB, tmp_path / "x.npz", tmp_path / "y.npz", 1)
    with np.load(tmp_path / "y.npz") as found:
        for kind, x in rows.items():
            assert found[f"{kind}.out"].dtype == kind
            np.testing.assert_array_equal(found[f"{kind}.out"], x)


def test_tensors_travel_whole():
    tensors = {"a": np.arange(6, dtype=">f4").reshape(2, 3).T, "ü": np.array([[True]] * 9), "b": np.empty((0, 2), "i8")}
    found = decode_tensors(encode_tensors(tensors))
    assert list(found.arrays) == list(tensors)
    for name, x in tensors.items():
        assert found.arrays[name].dtype == x.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found.arrays[name], x)


@BROWSER.mark
def test_a_broken_engine_is_a_model_error(files, tmp_path):
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime-web cannot open it: .*protobuf parsing failed"):
        BrowserDevice().evaluate(files / "broken.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)


@BROWSER.mark
def test_an_engine_that_fails_at_work_is_a_model_error(tmp_path):
    nodes = [make_node("Reshape", ["x", "shape"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "reshape",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 4]), "shape")],
    )
    save_graph(tmp_path / "reshape.onnx", graph)
    np.savez(tmp_path / "x.npz", **{"input.x": np.zeros((2, 3), np.float32)})
    with pytest.raises(ModelError, match=r"reshape\.onnx: onnxruntime-web failed to run it: .*Reshape"):
        BrowserDevice().evaluate(tmp_path / "reshape.onnx", WEB, tmp_path / "x.npz", tmp_path / "y.npz", 1)


@BROWSER.mark
def test_a_type_that_a_page_cannot_be_fed_is_a_model_error(tmp_path):
    values = [make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([make_node("Identity", ["x"], ["y"])], "strings", values[:1], values[1:])
    save_graph(tmp_path / "strings.onnx", graph)
    with pytest.raises(ModelError, match=r"strings\.onnx: 'x' is a string, which a page cannot be fed"):
        BrowserDevice().evaluate(tmp_path / "strings.onnx", WEB, tmp_path / "x.npz", tmp_path / "y.npz", 1)


@BROWSER.mark
def test_inputs_that_do_not_fit_are_a_model_error(files, tmp_path):
    with pytest.raises(ModelError, match=r"'x' must be float32 \[batch, 25\], but is float32 \[150, 24\]"):
        BrowserDevice().evaluate(files / "wide.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)
    assert not (tmp_path / "y.npz").exists()


def test_an_engine_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: cannot be read: No such file"):
        BrowserDevice().evaluate(tmp_path / "none.onnx", WEB, tmp_path / "x.npz", tmp_path / "y.npz", 1)


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        (Runtime("openvino"), "runtime 'onnxruntime-web', not of 'openvino'"),
        (Runtime("onnxruntime-web", {"gpu": True}), "takes no options, but was given gpu"),
    ],
    ids=["runtime", "options"],
)
def test_what_a_browser_does_not_run_is_a_target_error(files, tmp_path, runtime, said):
    with pytest.raises(TargetError, match=said):
        BrowserDevice().describe(runtime)
    with pytest.raises(TargetError, match=said):
        BrowserDevice().evaluate(files / "float.onnx", runtime, files / "x.npz", tmp_path / "y.npz", 1)


# --- profile


def profile(files, folder, engines=("float", "uint8"), device=None, advance=lambda *_: None, **options):
    paths = {name: files / f"{name}.onnx" for name in engines}
    config = ProfileConfig(**{"iterations": 120, "warmup": 5, "cold_starts": 1, **options})
    return (device or BrowserDevice()).profile(paths, WEB, files / "x.npz", folder, config, advance)


@pytest.fixture(scope="module")
def profiled(files, tmp_path_factory):
    """One profile, its folder, and at each step what was reported and which processes lived."""
    folder = tmp_path_factory.mktemp("profile")
    steps, lived = [], []

    def advance(*step):
        steps.append(step)
        lived.append(processes())

    return profile(files, folder, cold_starts=2, advance=advance), folder, steps, lived


@BROWSER.mark
def test_a_profile_reports_every_engine_with_its_raw_times(files, profiled):
    result, folder, _, _ = profiled
    assert (result.threads, result.block) == (1, 50)
    assert {"cpu", "governor", "memory"} <= result.machine.keys()
    assert result.machine["onnxruntime-web"] == library.VERSION
    assert result.machine["clock_step"] == "5 us"
    assert [engine.name for engine in result.engines] == ["float", "uint8"]
    for engine in result.engines:
        raw = np.load(folder / engine.raw_file)
        assert raw.shape == (120,)
        assert (raw > 0).all()
        np.testing.assert_allclose(raw / 5000, np.rint(raw / 5000), atol=1e-3)  # whole steps of the clock
        assert engine.latency.n == 120
        assert engine.latency.max_ms == raw.max() / 1e6
        assert engine.latency.p50 is not None
        assert engine.latency.p50.value_ms < min(engine.load_ms)
        assert len(engine.load_ms) == len(engine.first_run_ms) == 2
        assert min(engine.load_ms + engine.first_run_ms) > 0
        assert 50e6 < engine.peak_rss_bytes < 2e9
        assert engine.size_bytes == (files / f"{engine.name}.onnx").stat().st_size


@BROWSER.mark
def test_engines_take_turns_in_an_order_that_rotates(profiled):
    _, _, steps, _ = profiled
    assert [(done, total) for done, total, _ in steps] == [(index, 12) for index in range(1, 13)]
    # Two rounds, each with two cold starts and two turns of 30.
    assert "".join(note[0] for _, _, note in steps) == "fu" + "fuuf" + "uf" + "uffu"
    assert ["opened" in note for _, _, note in steps[:6]] == [True] * 2 + [False] * 4


@BROWSER.mark
def test_each_round_has_fresh_browsers_that_stay_for_their_share(profiled):
    _, _, _, lived = profiled
    assert all(set(lived[1]) & set(pids) for pids in lived[2:6])
    assert not set(lived[5]) & set(lived[7])


@BROWSER.mark
def test_nothing_but_latency_is_measured_and_why(profiled):
    for engine in profiled[0].engines:
        assert (engine.compute, engine.layers, engine.paced, engine.sustained, engine.energy) == (
            None,
            (),
            *(None,) * 3,
        )
        assert engine.import_ms == ()
        assert engine.not_measured.keys() == {"compute", "layers", "paced", "sustained", "energy"}
        assert all(reason.startswith("not measured: ") for reason in engine.not_measured.values())


@BROWSER.mark
def test_memory_is_that_of_the_engine(files, tmp_path):
    weights = 64 * 2**20
    graph = helper.make_graph(
        [make_node("Mul", ["x", "w"], ["m"]), make_node("ReduceSum", ["m"], ["logits"], keepdims=0)],
        "large",
        [make_tensor_value_info("x", TensorProto.FLOAT, [1, 24])],
        [make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((weights // 96, 24), np.float32), "w")],
    )
    peaks = []
    for engine in (files / "float.onnx", save_graph(tmp_path / "large.onnx", graph)):
        with Page(engine, 60) as page:
            page.ask("open", threads=1)
            peaks.append(page.peak_rss_bytes())
    assert peaks[1] - peaks[0] > weights


@BROWSER.mark
def test_what_advance_raises_ends_the_browsers(files, tmp_path):
    def interrupt(done, _total, _note):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(files, tmp_path, ["float"], advance=interrupt)


# --- a browser that is lost


@BROWSER.mark
def test_a_browser_killed_between_turns_is_a_device_error(files, tmp_path):
    def kill(done, _total, _note):
        if done == 2:
            os.kill(processes()[0], signal.SIGKILL)

    with pytest.raises(DeviceError, match=r"did not answer 'measure': .* ended \(SIGKILL\); it"):
        profile(files, tmp_path, ["float"], advance=kill)


@BROWSER.mark
def test_a_page_that_crashes_in_the_middle_of_a_job_is_a_device_error(files):
    with Page(files / "float.onnx", 600) as page:
        page.ask("open", threads=1)
        page.ask("first", {name: np.ones((1, 24), np.float32) for name in ("x", "y")})
        page.ask("start_worker")
        (renderer,) = page.chromium.processes_with_worker()
        threading.Timer(0.5, os.kill, (renderer, signal.SIGKILL)).start()
        start = time.monotonic()
        with pytest.raises(DeviceError, match="did not answer 'measure': the page crashed"):
            page.ask("measure", iterations=10**8, warmup=0)
        assert time.monotonic() - start < 200, "it was not waited for"


@BROWSER.mark
def test_a_slow_answer_is_a_device_error(files):
    with Page(files / "float.onnx", 60) as page:
        page.ask("open", threads=1)
        page.ask("first", {name: np.ones((1, 24), np.float32) for name in ("x", "y")})
        page.timeout_seconds = 0.5
        with pytest.raises(DeviceError, match=r"did not answer 'measure' in 0\.5 s"):
            page.ask("measure", iterations=10**8, warmup=0)


@BROWSER.mark
def test_a_page_that_does_not_open_in_time_is_a_device_error(files, tmp_path):
    with pytest.raises(DeviceError, match=r"did not open its page in 0\.01 s"):
        BrowserDevice(timeout_seconds=0.01).evaluate(files / "float.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)


@BROWSER.mark
def test_a_program_that_is_no_browser_is_a_device_error(files, tmp_path, monkeypatch):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("EDGEKD_CHROMIUM", str(program))
    with pytest.raises(DeviceError, match=r"chromium ended \(exit code 3\); it last said: no display"):
        BrowserDevice().evaluate(files / "float.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)
    with pytest.raises(DeviceError, match=r"is no Chromium, to --version it says ''"):
        BrowserDevice().describe(WEB)


@BROWSER.mark
def test_a_browser_ends_when_its_starter_is_killed(files):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom edgekd.devices.browser import chromium\n"
        f"from edgekd.devices.browser.page import Page\nchromium.PROFILE_PREFIX = {PREFIX!r}\n"
        f"page = Page(Path({str(files / 'float.onnx')!r}), 60)\npage.ask('open', threads=1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes() == []
    (profile_folder,) = Path("/tmp").glob(f"{PREFIX}*")  # nobody was left to remove it
    shutil.rmtree(profile_folder)


# --- what is there


@BROWSER.mark
def test_describe_tells_browser_and_library():
    facts = BrowserDevice().describe(WEB)
    assert facts == BrowserDevice().describe(WEB)
    assert facts.keys() == {"cpu", "logical_cores", "arch", "browser", "onnxruntime-web"}
    assert facts["arch"] == BrowserDevice().arch
    assert all(facts.values())
    assert facts["browser"] == version(find_chromium())


def test_no_chromium(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEKD_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no Chromium in PATH, under none of the names chromium, chromium-browser" in BrowserDevice().missing()
    with pytest.raises(DeviceError, match="no Chromium in PATH"):
        BrowserDevice().describe(WEB)
    monkeypatch.setenv("EDGEKD_CHROMIUM", "/no/such/chromium")
    with pytest.raises(DeviceError, match="EDGEKD_CHROMIUM: /no/such/chromium is no program that can be run"):
        find_chromium()


@pytest.mark.parametrize("name", NAMES)
def test_chromium_under_each_name(monkeypatch, tmp_path, name):
    monkeypatch.delenv("EDGEKD_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).write_text("#!/bin/sh\necho Google Chrome 150.0.7000.1 beta\n")
    (tmp_path / name).chmod(0o755)
    assert find_chromium() == str(tmp_path / name)
    assert version(find_chromium()) == "Google Chrome 150.0.7000.1"


@BROWSER.mark
def test_without_the_library_an_error_says_how_to_install_it(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "1.30.0, which is not installed: edgekd device install browser" in BrowserDevice().missing()
    with pytest.raises(DeviceError, match="which is not installed: edgekd device install browser"):
        BrowserDevice().describe(WEB)
    with pytest.raises(DeviceError, match="which is not installed: edgekd device install browser"):
        BrowserDevice().evaluate(files / "float.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)


@BROWSER.mark
def test_an_altered_library_is_not_run(files, tmp_path, monkeypatch):
    shutil.copytree(library.library_folder(), tmp_path / "edgekd" / library.PACKAGE / library.VERSION)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with (library.library_folder() / "ort.wasm.min.js").open("ab") as stream:
        stream.write(b";")
    with pytest.raises(DeviceError, match=r"ort\.wasm\.min\.js: is not that of onnxruntime-web .*; install it again"):
        BrowserDevice().evaluate(files / "float.onnx", WEB, files / "x.npz", tmp_path / "y.npz", 1)


# --- the example


@BROWSER.mark
def test_the_example_page_shows_what_the_bundle_says(files, tmp_path):
    site = shutil.copytree(EXAMPLE, tmp_path / "site")
    (site / "node_modules" / library.PACKAGE).mkdir(parents=True)
    (site / "node_modules" / library.PACKAGE / "dist").symlink_to(library.library_folder())
    (site / "bundle").mkdir()
    shutil.copy(files / "float.onnx", site / "bundle" / "deploy.onnx")
    with np.load(files / "x.npz") as archive:
        rows = {name: archive[f"input.{name}"][:5] for name in ("x", "y")}
    with onnxruntime.open_engine(files / "float.onnx") as session:
        logits = session.run(rows)["logits"]
    ids = np.array(["one", "zwölf", "three", "four", "five"])
    inputs = {"input.x": np.asfortranarray(rows["x"]), "input.y": rows["y"]}
    np.savez(site / "bundle" / "reference.npz", ids=ids, **{"output.logits": -logits}, **inputs)
    specs = [{"name": name, "dtype": "float32", "shape": ["batch", 24]} for name in rows]
    classes = ["ant", "bee", "cat", "dog", "<eel>"]
    manifest = {"task": {"name": "animals"}, "target": "browser", "inputs": specs}
    manifest["outputs"] = [{"name": "logits", "kind": "classes", "classes": classes}]
    (site / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    dom = html.unescape(render(site, tmp_path / "profile"))
    cells = re.findall("<td[^>]*>([^/]*)</td>", dom)
    assert cells[0::4] == ids.tolist()
    assert cells[1::4] == [classes[index] for index in logits.argmax(1)]
    assert cells[2::4] == [classes[index] for index in logits.argmin(1)]
    assert "animals, built for browser" in dom


def render(site, profile):
    """Return a page's document once its scripts are done; the clock stands still meanwhile."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site)) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        flags = [*chromium.FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=60000", "--dump-dom"]
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        rendered = subprocess.run(
            [find_chromium(), *flags, *sandbox, f"http://127.0.0.1:{running.server_port}/"],
            env={**os.environ, "HOME": str(profile), "TMPDIR": "/tmp"},
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        running.shutdown()
    return rendered.stdout


# --- the server


@pytest.fixture
def server():
    with Server({"engine": b"secret"}) as running:
        yield running


def request(server, path, host=None, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, body, {"Host": host or server.host})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers


def test_the_server_isolates_what_it_serves(server):
    status, content, headers = request(server, f"/{server.token}/engine")
    assert (status, content) == (200, b"secret")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path", ["/engine", "/wrong/engine", "//engine", "/", "engine", "/{token}/", "/{token}/../engine"]
)
def test_the_server_serves_nothing_else(server, path):
    assert request(server, path.format(token=server.token))[:2] == (404, b"")


def test_the_server_knows_one_host_only(server):
    """A page of another site that had its name resolved to this host would send that name."""
    path = f"/{server.token}/engine"
    assert request(server, path, host=f"localhost:{server.server_port}")[0] == 404
    assert request(server, path, host="example.org")[0] == 404


def test_the_server_takes_answers_from_the_page_only(server):
    assert request(server, "/wrong/answer", method="POST", body=b"x" * 100_000)[0] == 404
    assert server.said.empty()
    assert request(server, f"/{server.token}/answer", method="POST", body=b"fine")[0] == 204
    assert server.said.get(timeout=1) == b"fine"


# --- install


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry with a package of tiny files, which are the pinned ones."""
    contents = {name: f"content of {name}".encode() for name in library.FILES}
    monkeypatch.setattr(library, "FILES", {name: hashlib.sha256(x).hexdigest() for name, x in contents.items()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data"))
    dist = {f"dist/{name}": content for name, content in contents.items()}
    archive = pack_package(library.PACKAGE, library.VERSION, {**dist, "dist/other.js": b"not wanted"})
    with serve_package(library.PACKAGE, library.VERSION, archive, monkeypatch, tmp_path / "npm"):
        yield contents


def kept():
    folder = library.library_folder()
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@NPM.mark
def test_installs_once(registry, monkeypatch):
    steps = []
    assert not library.installed()
    assert library.install(lambda *step: steps.append(step)) == library.library_folder()
    assert [(done, total) for done, total, _ in steps] == [(1, 2), (2, 2)]
    assert library.installed()
    assert kept() == registry == library.read_library()
    monkeypatch.setenv("PATH", "")
    library.install(lambda *_: None)


@NPM.mark
def test_install_mends_what_was_altered(registry):
    library.install(lambda *_: None)
    (library.library_folder() / "ort.wasm.min.js").write_bytes(b"altered")
    library.install(lambda *_: None)
    assert kept() == registry


@NPM.mark
@pytest.mark.parametrize("said", ["is not the one that was pinned", "is missing"])
def test_another_package_than_pinned_is_not_kept(registry, monkeypatch, said):
    name = "ort.wasm.min.js" if "pinned" in said else "ort.wasm.absent.js"
    monkeypatch.setattr(library, "FILES", {**library.FILES, name: "0" * 64})
    with pytest.raises(DeviceError, match=rf"its {name} {said}: expected SHA-256 0{{64}}, found .*; nothing was kept"):
        library.install(lambda *_: None)
    assert kept() == {}


@NPM.mark
def test_no_network(registry, monkeypatch):
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    with pytest.raises(DeviceError, match=r"npm cannot fetch it: code ECONNREFUSED .*; check the network") as caught:
        library.install(lambda *_: None)
    assert f"of its dist folder into {library.library_folder()} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        DeviceError, match=r"npm is not in PATH; install Node\.js with npm, or put ort\.wasm\.min\.js, "
    ):
        library.install(lambda *_: None)


@NPM.mark
def test_a_folder_that_cannot_be_made(registry, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"cannot be .*: Not a directory; choose another with XDG_CACHE_HOME"):
        library.install(lambda *_: None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"XDG_CACHE_HOME": "/b"}, "/b/edgekd"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/edgekd"),
    ],
    ids=["xdg", "home"],
)
def test_the_folder(monkeypatch, settings, expected):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert library.library_folder() == Path(expected) / "onnxruntime-web" / library.VERSION
