"""JupyterLab in a headless browser, driven by a test.

    with Lab(folder) as lab:
        lab.open("demo.ipynb")
        lab.run_all()
        lab.wait_idle()

A server of its own on a free port, with settings, workspaces and run directories in a temporary
folder; Debian's Chromium (or Chrome) through playwright, which downloads nothing. Leaving the block
ends the browser, the server and the kernels that the server started, and nothing else.

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
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from picolab.show.png import find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

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


class Lab:
    def __init__(self, folder: Path | str, size: tuple[int, int] = (1300, 1500), theme: str = ""):
        self.folder, self.size, self.theme = Path(folder), size, theme
        self.errors: list[str] = []

    def __enter__(self) -> "Lab":
        self._scratch = Path(tempfile.mkdtemp(prefix="picolab-lab-"))
        self._server = self._playwright = self._browser = None
        try:
            self._start_server()
            self._start_browser()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._browser is not None:
            self._browser.close()
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

    # --- the page -------------------------------------------------------------------------------

    def open(self, notebook: str) -> "Page":
        """Open a notebook of `folder` and wait until its kernel is connected and idle."""
        address = f"http://127.0.0.1:{self._port}/lab/tree/{notebook}?token={self._token}&reset"
        self.page.goto(address)
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        self.page.wait_for_function(_READY, timeout=90_000)
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

    def command(self, name: str) -> None:
        """Start a JupyterLab command and return; what it does is to be waited for."""
        self.page.evaluate("name => { jupyterapp.commands.execute(name); return 1 }", name)

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

    def processes(self) -> list[psutil.Process]:
        """The server and all that came of it, orphans included: they carry its XDG_STATE_HOME."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("XDG_STATE_HOME") == str(self._scratch / "state"):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # it is gone, or another user's
        return found

    def ranks(self) -> list[psutil.Process]:
        """All but the server, the kernels and their own children (a kernel's rank server)."""
        found = []
        for process in self.processes():
            try:
                parent = process.parent()
                if process.pid == self._server.pid or _is_kernel(process):
                    continue
                if parent is None or not _is_kernel(parent):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    # --- start ----------------------------------------------------------------------------------

    def _start_server(self) -> None:
        self._token = "drives-the-test"
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            self._port = asked.getsockname()[1]
        settings = self._scratch / "settings"
        chosen = dict(_SETTINGS)
        if self.theme:
            chosen["@jupyterlab/apputils-extension/themes"] = {"theme": self.theme}
        for name, values in chosen.items():
            file = settings / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(self._scratch / "config"),
            "JUPYTER_RUNTIME_DIR": str(self._scratch / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(self._scratch / "workspaces"),
            "XDG_STATE_HOME": str(self._scratch / "state"),
        }
        self._log = (self._scratch / "server.log").open("w+")
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={self._port}", "--ServerApp.port_retries=0"),
                f"--IdentityProvider.token={self._token}",
                f"--ServerApp.root_dir={self.folder}",
                "--LabApp.expose_app_in_browser=True",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait_for_server(f"http://127.0.0.1:{self._port}/api/status?token={self._token}")

    def _wait_for_server(self, address: str, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self._log.seek(0)
        raise RuntimeError(f"JupyterLab did not start:\n{self._log.read()[-4000:]}")

    def _start_browser(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=find_browser(), headless=True, args=_FLAGS
        )
        width, height = self.size
        self.page = self._browser.new_page(viewport={"width": width, "height": height})
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)


def _is_kernel(process: psutil.Process) -> bool:
    return "ipykernel_launcher" in " ".join(process.cmdline())
