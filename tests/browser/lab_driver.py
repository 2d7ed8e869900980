"""JupyterLab in a headless browser, driven by a test.

    with Jupyter() as jupyter:
        with jupyter.lab(folder) as lab:
            lab.open("demo.ipynb")
            lab.run_all()
            lab.wait_idle()

`Jupyter` is what takes long to start and is the same for all: a server of its own on a free port,
with settings, workspaces and run directories in a temporary folder, and Debian's Chromium (or
Chrome) through playwright, which downloads nothing. A `Lab` is one folder in it and one page;
leaving its block ends its kernels and what they started. Leaving the outer one ends the browser and
the server, and nothing else.

Chosen because the alternatives failed: cells are run through JupyterLab's commands (keyboard
shortcuts lost cells in three of five runs), and a kernel is ready when its connection says so (the
status dot turns green too early)."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from picolab.show.png import find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

DEADLINE_S = 90.0  # for whatever should come at once: beside other tests a page takes its time
# --no-sandbox: root in a container has no sandbox. The rest keeps the browser on this machine.
_FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Without this a question about news covers the page.
_SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}
}
_READY = """() => {
    const panel = window.jupyterapp && jupyterapp.shell.currentWidget;
    const session = panel && panel.sessionContext && panel.sessionContext.session;
    const kernel = session && session.kernel;
    return !!kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
_FIGURES = "[...document.querySelectorAll('.js-plotly-plot')]"


class Jupyter:
    def __enter__(self) -> "Jupyter":
        self._scratch = Path(tempfile.mkdtemp(prefix="picolab-lab-"))
        self.root = self._scratch / "root"
        self.root.mkdir()
        self._server = self._playwright = self.browser = None
        try:
            self._start_server()
            self._start_browser()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self.browser is not None:
            self.browser.close()
        if self._playwright is not None:
            self._playwright.stop()
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            for process in self.processes():  # a kernel that the server failed to end
                process.kill()
            self._log.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def lab(
        self, folder: Path | str, size: tuple[int, int] = (1300, 1500), theme: str = ""
    ) -> "Lab":
        """A page of this size, on the notebooks of `folder`."""
        return Lab(self, Path(folder), size, theme or "JupyterLab Light")

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}/{path}?token={self._token}"

    def set(self, name: str, values: dict) -> None:
        """A setting of JupyterLab, for the next page."""
        file = self._scratch / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))

    def end_kernels(self) -> None:
        """And what they have left on the disk: the next ones begin as the first."""
        for kernel in self._ask("api/kernels"):
            self._ask(f"api/kernels/{kernel['id']}", "DELETE")
        deadline = time.monotonic() + 20  # what a kernel started ends by itself
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self._state, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """All that came of the server, orphans included: they carry its XDG_STATE_HOME."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == self._server.pid:
                    continue
                if process.environ().get("XDG_STATE_HOME") == str(self._state):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # it is gone, or another user's
        return found

    # --- start ----------------------------------------------------------------------------------

    def _start_server(self) -> None:
        self._token = "drives-the-test"
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            self._port = asked.getsockname()[1]
        for name, values in _SETTINGS.items():
            self.set(name, values)
        self._state = self._scratch / "state"
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(self._scratch / "config"),
            "JUPYTER_RUNTIME_DIR": str(self._scratch / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self._scratch / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self._scratch / "workspaces"),
            "XDG_STATE_HOME": str(self._state),
        }
        self._log = (self._scratch / "server.log").open("w+")
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={self._port}", "--ServerApp.port_retries=0"),
                f"--IdentityProvider.token={self._token}",
                f"--ServerApp.root_dir={self.root}",
                "--LabApp.expose_app_in_browser=True",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait_for_server()

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                self._ask("api/status")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self._log.seek(0)
        raise RuntimeError(f"JupyterLab did not start:\n{self._log.read()[-4000:]}")

    def _ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(self.address(path), method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def _start_browser(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self.browser = self._playwright.chromium.launch(
            executable_path=find_browser(), headless=True, args=_FLAGS
        )


class Lab:
    def __init__(self, jupyter: Jupyter, folder: Path, size: tuple[int, int], theme: str):
        self._jupyter, self._size, self._theme = jupyter, size, theme
        self._folder, self._name = folder.resolve(), uuid.uuid4().hex[:8]
        self.processes = jupyter.processes
        self.errors: list[str] = []

    def __enter__(self) -> "Lab":
        (self._jupyter.root / self._name).symlink_to(self._folder, target_is_directory=True)
        self._jupyter.set("@jupyterlab/apputils-extension/themes", {"theme": self._theme})
        width, height = self._size
        self.page = self._jupyter.browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(1000 * DEADLINE_S)
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        return self

    def __exit__(self, *_) -> None:
        self.page.close()
        self._jupyter.end_kernels()

    def _note(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    # --- the page -------------------------------------------------------------------------------

    def open(self, notebook: str) -> "Page":
        """Open a notebook of `folder` and wait until its kernel is connected and idle."""
        self.page.goto(self._jupyter.address(f"lab/tree/{self._name}/{notebook}") + "&reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.page.wait_for_function(_READY)
        return self.page

    def run_all(self) -> None:
        """Start every cell, from the top; `wait_idle` waits for the last."""
        self._start("notebook:run-all-cells")

    def run_cell(self, text: str) -> None:
        """Start the first cell whose source holds `text`."""
        self.show_cell(text)
        self._start("notebook:run-cell")

    def wait_idle(self, timeout_s: float = 120) -> None:
        """Until every cell that was started has ended."""
        self.page.wait_for_function("() => !window.picolabRunning", timeout=timeout_s * 1000)

    def command(self, name: str, arguments: dict | None = None) -> None:
        """Start a JupyterLab command and return; what it does is to be waited for."""
        start = "([name, of]) => { jupyterapp.commands.execute(name, of); return 1 }"
        self.page.evaluate(start, [name, arguments or {}])

    def _start(self, name: str) -> None:
        # The command's own promise: prompts of cells outside the window are not in the page.
        self.page.evaluate(
            """name => {
                window.picolabRunning = (window.picolabRunning || 0) + 1;
                jupyterapp.commands.execute(name).finally(() => { window.picolabRunning -= 1 });
                return 1;
            }""",
            name,
        )

    def show_cell(self, text: str) -> None:
        """Select the first cell whose source holds `text`, and scroll to it.

        JupyterLab keeps only what is near the window in the page, so do this before looking for it.
        """
        self.page.evaluate(
            """text => {
                const notebook = jupyterapp.shell.currentWidget.content;
                const source = cell => cell.model.sharedModel.getSource();
                const index = notebook.widgets.findIndex(cell => source(cell).includes(text));
                if (index < 0) throw new Error(`no cell holds ${text}`);
                notebook.activeCellIndex = index;
                return notebook.scrollToItem(index, 'start').then(() => 1);
            }""",
            text,
        )

    def cell_errors(self) -> list[str]:
        """The tracebacks that stand in the notebook, also those of cells that are not drawn."""
        return self.page.evaluate("""() => {
            const cells = [...jupyterapp.shell.currentWidget.content.model.cells];
            const outputs = cells.flatMap(cell => cell.toJSON().outputs || []);
            const errors = outputs.filter(output => output.output_type === 'error');
            return errors.map(error => `${error.ename}: ${error.evalue}`);
        }""")

    def figure_points(self) -> list[list[int]]:
        """Points in each trace of each plotly figure on the page, as the browser holds them."""
        return self.page.evaluate(f"""() => {_FIGURES}.map(figure => (figure.data || []).map(
            trace => (trace.y && (trace.y.length ?? trace.y.shape)) || 0))""")

    # --- processes ------------------------------------------------------------------------------

    def ranks(self) -> list[psutil.Process]:
        """All but the kernels and their own children (a kernel's rank server)."""
        found = []
        for process in self.processes():
            try:
                parent = process.parent()
                if _is_kernel(process):
                    continue
                if parent is None or not _is_kernel(parent):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def _is_kernel(process: psutil.Process) -> bool:
    return "ipykernel_launcher" in " ".join(process.cmdline())
