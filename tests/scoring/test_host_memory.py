"""The memory of a host that a process may use: control groups and other processes count."""

import pytest

from influence_ssl_jax.scoring.memory import host_memory

GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A host with 1 TiB free, as the kernel tells of it."""
    (tmp_path / "proc/self").mkdir(parents=True)
    write(tmp_path, "proc/meminfo", f"MemTotal: {2**30} kB\nMemAvailable: {2**30} kB\n")
    write(tmp_path, "proc/self/statm", "100 0 0\n")
    return tmp_path


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_without_control_groups_the_host_is_the_bound(root):
    assert 0 < host_memory(root) <= 2**40
    assert host_memory(root / "nothing there") >= host_memory(root)


def test_the_limit_of_a_group_of_version_2_counts_and_so_does_one_above_it(root):
    write(root, "proc/self/cgroup", "0::/job/step\n")
    write(root, "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(root, "sys/fs/cgroup/job/memory.max", f"{GIB}\n")
    assert host_memory(root) == GIB
    write(root, "sys/fs/cgroup/job/step/memory.max", f"{GIB // 2}\n")
    assert host_memory(root) == GIB // 2


def test_the_limit_of_a_group_of_version_1_counts(root):
    write(root, "proc/self/cgroup", "4:cpu,cpuacct:/job\n3:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{GIB}\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    assert host_memory(root) == GIB


def test_what_other_processes_hold_is_not_there(root):
    write(root, "proc/meminfo", f"MemTotal: {2**30} kB\nMemAvailable: {GIB // 1024} kB\n")
    assert host_memory(root) == GIB
