"""Is this a rank that torchrun started? What is left of a launcher gets one sentence that names the
variable. The wrong version kept below asks only whether all are there, and then torch waits or
fails in its own words, or the run is taken for one at home.
"""

import os

import pytest

from picolab.launch.worker import SET_BY_TORCHRUN, started

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SENTENCES = {
    "RANK is set as for a rank, and WORLD_SIZE is not set": dict(RANK="0"),
    "WORLD_SIZE is set as for a rank, and RANK is not set": dict(WORLD_SIZE="2"),
    "WORLD_SIZE is empty; start it with torchrun": {**TORCHRUN, "WORLD_SIZE": ""},
    "unset RANK WORLD_SIZE": {**TORCHRUN, "MASTER_ADDR": " "},
    "RANK is '2' and WORLD_SIZE '2', which no rank has": {**TORCHRUN, "RANK": "2"},
    "RANK is 'one' and": {**TORCHRUN, "RANK": "one"},
    "MASTER_ADDR is 'no machine' and": {**TORCHRUN, "MASTER_ADDR": "no machine"},
    "MASTER_PORT 'http-ish', where no machine": {**TORCHRUN, "MASTER_PORT": "http-ish"},
    "this machine has no interface 'eth9'": {**TORCHRUN, "GLOO_SOCKET_IFNAME": "lo,eth9"},
    "SLURM_STEP_NUM_TASKS says that srun started this 4 times": dict(SLURM_STEP_NUM_TASKS="4"),
}


def all_are_there(environment):
    return all(name in environment for name in SET_BY_TORCHRUN)


def test_a_rank_and_no_rank():
    assert started(TORCHRUN) and not started({}) and not started(os.environ), "tests are no rank"
    at_home = [{"MASTER_PORT": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PROCID": "0"}]
    assert not any(map(started, at_home))


def test_what_a_launcher_left_is_named():
    for sentence, environment in SENTENCES.items():
        with pytest.raises(ValueError) as error:
            started(environment)
        assert sentence in str(error.value) and "\n" not in str(error.value)
        assert isinstance(all_are_there(environment), bool)  # mutant: says nothing
