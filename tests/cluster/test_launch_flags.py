"""The table of compiler flags: each set is taken by the compiler of its chip, each flag says why it is there."""

import importlib.util
import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

from sora_jax.cluster.compiler_flags import flag_table

FLAGS = flag_table()
CHIPS = tomllib.loads((ROOT / "launch/chips.toml").read_text())
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
COMPILE = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = jax.sharding.Mesh(np.array(devices), ("x",))
swap = lambda x: jax.lax.all_to_all(x, "x", split_axis=1, concat_axis=0, tiled=True)
n = 128 * len(devices)
x = jax.ShapeDtypeStruct((n, n), jnp.bfloat16)
split = jax.P("x")
made = jax.jit(jax.shard_map(swap, mesh=mesh, in_specs=split, out_specs=split)).lower(x).compile().as_text()
print("asynchronous" if "all-to-all-start" in made else "synchronous")
"""


def of(chip: str) -> list[str]:
    """All that the chip is ever given: that of several slices."""
    return [entry["flag"] for entry in FLAGS if chip in entry["chips"]]


def compiled(variable: str, flags: list[str], *program: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        variable: " ".join(flags),
    }
    command = [sys.executable, "-c", *program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_every_flag_has_a_reason_a_source_and_chips_that_there_are():
    for entry in FLAGS:
        assert len(entry["reason"]) > 40 and "." in entry["source"], entry["flag"]
        assert entry["chips"] and set(entry["chips"]) <= set(CHIPS)
        assert entry["flag"].startswith("--xla_") and "=" in entry["flag"]
    for chip in CHIPS:
        names = [flag.partition("=")[0] for flag in of(chip)]
        assert names and len(names) == len(set(names)), chip


def test_each_tpu_has_its_own_size_of_vector_memory():
    """A core of v7x has 64 MiB; the set of v6e would ask for more."""
    limits = {chip: flag for chip in CHIPS for flag in of(chip) if "vmem_limit" in flag}
    assert limits["v6e"] != limits["v7x"] and int(limits["v7x"].partition("=")[2]) <= 64 * 1024


@pytest.mark.parametrize("chip", [chip for chip in CHIPS if chip not in TPUS])
def test_xla_knows_the_flags_of_a_gpu(chip):
    done = compiled("XLA_FLAGS", of(chip), "import jax; jax.devices()")
    assert done.returncode == 0, done.stderr


def test_xla_stops_at_a_flag_that_it_does_not_know():
    done = compiled("XLA_FLAGS", ["--xla_gpu_no_such_flag=true"], "import jax; jax.devices()")
    assert done.returncode != 0 and "xla_gpu_no_such_flag" in done.stderr


@pytest.mark.parametrize("chip", TPUS)
def test_libtpu_compiles_with_the_flags_of_a_tpu(chip):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install libtpu")
    done = compiled("LIBTPU_INIT_ARGS", of(chip), COMPILE, TPUS[chip])
    assert done.returncode == 0, done.stderr
    # What the flags are for can be seen in the program.
    assert done.stdout.split()[-1] == "asynchronous"


def test_libtpu_stops_at_a_flag_that_it_does_not_know():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install libtpu")
    done = compiled("LIBTPU_INIT_ARGS", ["--xla_tpu_no_such_flag=true"], COMPILE, TPUS["v5e"])
    assert done.returncode != 0 and "xla_tpu_no_such_flag" in done.stderr
