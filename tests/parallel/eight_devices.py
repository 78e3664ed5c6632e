"""Run by `test_devices.py` in a process with eight simulated devices; prints what it found as JSON."""

import json

import jax

from influence_ssl_jax.influence.scores import Scorer
from influence_ssl_jax.parallel import batches_of, all_devices, local_devices
from tests.parallel import rig


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    found = {}
    for name, (backend, loss, module) in rig.CASES.items():
        whole = rig.problem(loss, module)
        plain = Scorer.fit(whole, backend, rig.SETTINGS, rig.measurement(module))
        sharded, divided, state = rig.on_mesh(backend, whole, batches_of(all_devices())(5))
        tables = {"plain": rig.scores(plain), "sharded": rig.scores(sharded, local_devices())}
        found[name] = {way: table["score"].to_pylist() for way, table in tables.items()}
        found[name]["batches"] = divided.count
        found[name]["shapes"] = [leaf.shape for leaf in divided.shapes(backend, 0).leaves] == [
            leaf.shape for leaf in jax.tree.leaves(state)
        ]
    print(json.dumps({"devices": jax.device_count(), "found": found}))


if __name__ == "__main__":
    main()
