"""The commands of docs/scaling.md that start a cluster, run as they are written: head, node and driver, with a token.

The machines are this one, each with a home of its own; HEAD and its port are replaced, and scp by a copy.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from vaecli.config.loading import dump_config

pytest.importorskip("ray")
SCALING = Path(__file__).parents[2] / "docs" / "scaling.md"
(RECIPE,) = re.findall(r"```bash\n(# on HEAD\n.*?)```", SCALING.read_text(), re.DOTALL)
ON_HEAD, ON_OTHERS, DRIVER = RECIPE.split("\n\n")


@pytest.mark.slow
def test_the_commands_start_a_cluster_that_asks_for_a_token(small, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    (tmp_path / "base.yaml").write_text(dump_config(small(name=None)))
    spec = {"base": "base.yaml", "grid": {"seed": [0, 1]}, "evaluation": {"k": 3, "binarised": False}}
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scp").write_text(f'#!/bin/sh\ncp "{tmp_path}/head/${{1#*:}}" "$2"\n')
    (tmp_path / "bin" / "scp").chmod(0o755)
    of_ray = tempfile.mkdtemp(prefix="ray-")  # the paths of its sockets must be short

    def start(commands: str, home: str, name: str) -> subprocess.Popen:
        (tmp_path / home).mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {
            "HOME": str(tmp_path / home),
            "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), environment["PATH"]]),
            "RAY_TMPDIR": of_ray,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        written = commands.replace("HEAD:6379", f"127.0.0.1:{port}").replace("--port 6379", f"--port {port}")
        with (tmp_path / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                ["bash", "-e", "-c", written],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    started = []
    try:
        for home, commands in (("head", ON_HEAD), ("other", ON_OTHERS)):
            started.append(start(commands, home, home))
            log = tmp_path / f"{home}.log"
            while "block forever" not in log.read_text():
                assert started[-1].poll() is None, log.read_text()
                time.sleep(0.1)
        driver = start(DRIVER, "other", "driver")
        assert driver.wait(90) == 0, (tmp_path / "driver.log").read_text()
        assert (tmp_path / "runs" / "sweeps" / "sizes" / "report.html").is_file()
        stranger = start(f"{DRIVER.strip()} --runs-dir elsewhere", "stranger", "stranger")
        assert stranger.wait(90) != 0
        assert "no authentication token was found" in (tmp_path / "stranger.log").read_text()
    finally:
        for process in reversed(started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(of_ray, ignore_errors=True)
