"""What arena-rank finds in `leagues.battles`, for tests to hold ours against.

    python tests/workers/ratings/record_arena_rank.py

Makes a virtual environment in a temporary folder, for arena-rank is for one version of JAX and one of numpy, by which all
else that is tested would be held; and writes arena_rank.json beside this file. The environment's python runs this file, too,
with the argument `write`.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

VERSION = "0.1.1"
RECORD = Path(__file__).with_name("arena_rank.json")
CLOSE = {"ftol": 1e-16, "gtol": 1e-10}  # by their own ones, a search ends 1e-4 away


def main() -> None:
    if sys.argv[1:] == ["write"]:
        RECORD.write_text(json.dumps(found(), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "-q", f"arena-rank=={VERSION}"], check=True)
        subprocess.run([python, __file__, "write"], check=True)


def found() -> dict[str, Any]:
    """Strengths on the natural-log scale, and half widths of 95 % intervals."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import numpy as np
    import pandas as pd
    from arena_rank.models.bradley_terry import BradleyTerry
    from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
    from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset

    from leagues import battles

    a, b, outcome, counts_a, counts_b = battles()
    names = ["length", "headers", "lists", "bold"]
    table = pd.DataFrame((counts_a - counts_b) / (counts_a + counts_b + 1), columns=names)
    table["model_a"], table["model_b"] = a, b
    table["winner"] = np.array(["model_a", "model_b", "tie"])[outcome]

    plain = PairDataset.from_pandas(table)
    styled = ContextualPairDataset.from_pandas(table, feature_cols=names, reweighted=False, normalize_features=False)
    record: dict[str, Any] = {"version": VERSION}
    for name, model, data in (
        ("bradley_terry", BradleyTerry(8, scale=1, base=np.e, init_rating=0, hessian_reg=1e-6, **CLOSE), plain),
        ("style", ContextualBradleyTerry(8, 4, 1, np.e, 0, reg=0, hessian_reg=1e-6, **CLOSE), styled),
    ):
        model.fitted = False
        result = model.compute_ratings_and_cis(data)
        half = (result["rating_upper"] - result["rating_lower"]) / 2
        record[name] = {"strengths": result["ratings"].tolist(), "half_widths": half.tolist()}
        if "coeffs" in result:
            record[name]["coefficients"] = result["coeffs"].tolist()
    return record


if __name__ == "__main__":
    main()
