"""Run by `test_devices.py` in a process with eight simulated devices; prints what it found as JSON."""

import json

import jax
import numpy as np

from influence_ssl_jax.influence.scores import Scorer
from influence_ssl_jax.parallel import batches_of, all_devices, local_devices
from tests.parallel import rig


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    found = {}
    for name, (backend, loss) in rig.CASES.items():
        whole = rig.problem(loss)
        plain = Scorer.fit(whole, backend, rig.SETTINGS, rig.measurement())
        sharded, divided, state = rig.on_mesh(backend, whole, batches_of(all_devices())(5))
        tables = {"plain": rig.scores(plain), "sharded": rig.scores(sharded, local_devices())}
        found[name] = {way: table["score"].to_pylist() for way, table in tables.items()}
        found[name]["batches"] = divided.count
        found[name]["shapes"] = jax.tree.map(np.shape, divided.shapes(backend, 0)) == jax.tree.map(np.shape, state)
        if name == "LoGra":
            same_state = rig.scores(jax.device_put(sharded, jax.devices()[0]))
            found[name]["one device, same state"] = same_state["score"].to_pylist()
            found[name]["norms"] = [table["gradient_norm"].to_pylist() for table in tables.values()]
    print(json.dumps({"devices": jax.device_count(), "found": found}))


if __name__ == "__main__":
    main()
