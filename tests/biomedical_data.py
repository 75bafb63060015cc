"""Small biomedical data: cells with facts of several kinds, and genotypes of two families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from bed_reader import to_bed
from scipy import sparse

from datamodels.training.recipes import Recipe

LINEAR = Recipe(architecture="linear", epochs=6, lr=0.05)


def cells(n: int = 12, p: int = 5) -> AnnData:
    """Counts, and facts of several kinds."""
    counts = np.random.default_rng(0).poisson(1.0, (n, p)).astype(np.float32)
    counts[3] = 0
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(["T", "B"] * (n // 2), categories=["T", "B"]),
            "state": np.arange(n) % 3,
            "donor": [f"d{i // 3}" for i in range(n)],
            "depth": counts.sum(axis=1),
            "doublet": np.arange(n) % 5 == 0,
            "note": ["x", None] * (n // 2),
            "odd": [("a", 1)] * n,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(p)])
    data = AnnData(sparse.csr_matrix(counts), obs, var, obsm={"X_pca": counts[:, :2] - 1}, layers={"half": counts / 2})
    data.raw = AnnData(sparse.csr_matrix(np.hstack([counts, counts])), obs)
    return data


DOSAGES = np.array([[0, 1, 2, np.nan], [1, 1, np.nan, np.nan], [2, 0, 0, np.nan], [2, 2, 1, np.nan]], np.float32)


@pytest.fixture
def bed(tmp_path: Path) -> Path:
    """Four samples of two families, four variants, the last never called."""
    properties = {
        "fid": ["f1", "f1", "f2", "f2"],
        "iid": ["001", "002", "003", "004"],
        "sex": [1, 2, 1, 2],
        "pheno": ["1", "2", "1", "-9"],
        "chromosome": ["1", "1", "2", "X"],
        "sid": ["rs1", ".", "rs3", "rs4"],
        "bp_position": [10, 20, 30, 40],
    }
    to_bed(tmp_path / "g.bed", DOSAGES, properties=properties)
    return tmp_path / "g.bed"
