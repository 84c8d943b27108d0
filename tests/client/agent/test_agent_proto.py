"""The generated code is that of agent.proto."""

import subprocess
import sys

from tests.client.agent.agents import ROOT


def test_the_generated_files_are_what_the_compiler_makes_of_the_proto(tmp_path):
    names = ("--python_out", "--grpc_python_out")
    outputs = [f"{name}={tmp_path}" for name in names]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "client/agent/agent.proto"], cwd=ROOT, check=True
    )
    for made in (tmp_path / "client" / "agent").iterdir():
        assert made.read_text() == (ROOT / "client" / "agent" / made.name).read_text()
    assert len(list((tmp_path / "client" / "agent").iterdir())) == 2
